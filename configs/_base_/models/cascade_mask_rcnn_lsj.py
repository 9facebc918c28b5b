# Cascade Mask R-CNN as published for MaxViT: pyramid levels 3 to 7, three anchor scales an octave, one further stage of
# boxes, which are class-agnostic, batch norms over all processes. (The heads' numbers of layers are assumed.)
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
norm = dict(type='SyncBN', eps=1e-3, momentum=0.01, requires_grad=True)
box_head = dict(
    type='ConvFCBBoxHead',
    num_shared_convs=4,
    num_shared_fcs=1,
    in_channels=256,
    conv_out_channels=256,
    fc_out_channels=1024,
    roi_feat_size=7,
    num_classes=80,
    reg_class_agnostic=True,
    norm_cfg=norm,
    loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
)
coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0])
sampler = dict(type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True)
assigner = dict(type='MaxIoUAssigner', match_low_quality=False, ignore_iof_thr=-1)
stage = dict(sampler=sampler, mask_size=28, pos_weight=-1, debug=False)
model = dict(
    neck=dict(start_level=1, add_extra_convs='on_output', norm_cfg=norm),
    rpn_head=dict(
        num_convs=2,
        anchor_generator=dict(
            _delete_=True,
            type='AnchorGenerator',
            octave_base_scale=3,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
    ),
    roi_head=dict(
        num_stages=2,
        stage_loss_weights=[1, 1],
        bbox_roi_extractor=dict(featmap_strides=[8, 16, 32, 64]),
        mask_roi_extractor=dict(featmap_strides=[8, 16, 32, 64]),
        bbox_head=[
            dict(**box_head, bbox_coder=dict(**coder, target_stds=[0.1, 0.1, 0.2, 0.2])),
            dict(**box_head, bbox_coder=dict(**coder, target_stds=[0.05, 0.05, 0.1, 0.1])),
        ],
        mask_head=dict(norm_cfg=norm),
    ),
    train_cfg=dict(
        rcnn=[
            dict(**stage, assigner=dict(**assigner, pos_iou_thr=0.6, neg_iou_thr=0.6, min_pos_iou=0.6)),
            dict(**stage, assigner=dict(**assigner, pos_iou_thr=0.7, neg_iou_thr=0.7, min_pos_iou=0.7)),
        ]
    ),
)
