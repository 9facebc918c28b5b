# Hybrid Task Cascade with its semantic branch, and what Swin's paper adds: a block of global attention on the last map
# and soft suppression. The box heads, four convolutions and one linear layer with GIoU, are those of Swin's Cascade;
# their class-agnostic boxes and the block's perceptron are assumed, from the published numbers of parameters. A leaf
# puts in the backbone.
_base_ = 'cascade_mask_rcnn.py'
mask_head = dict(
    type='HTCMaskHead',
    num_convs=4,
    in_channels=256,
    conv_out_channels=256,
    num_classes=80,
    loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
)
stage_stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
model = dict(
    type='HybridTaskCascade',
    data_preprocessor=dict(pad_seg=True),
    neck=dict(
        _delete_=True,
        type='mmext_backbones.GlobalBlockNeck',
        in_channels=[96, 192, 384, 768],
        neck=dict(type='FPN', out_channels=256, num_outs=5),
    ),
    roi_head=dict(
        type='HybridTaskCascadeRoIHead',
        interleaved=True,
        mask_info_flow=True,
        bbox_head=[
            {
                **_base_.cascade_box_head,
                'reg_class_agnostic': True,
                'bbox_coder': dict(**_base_.cascade_coder, target_stds=stds),
            }
            for stds in stage_stds
        ],
        mask_head=[dict(**mask_head, with_conv_res=False), mask_head, mask_head],
        semantic_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0),
            out_channels=256,
            featmap_strides=[8],
        ),
        semantic_head=dict(
            type='FusedSemanticHead',
            num_ins=5,
            fusion_level=1,
            seg_scale_factor=1 / 8,
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=183,
            loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.2),
        ),
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.001, nms=dict(type='soft_nms', iou_threshold=0.5))),
)
