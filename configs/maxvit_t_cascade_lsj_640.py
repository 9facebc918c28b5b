_base_ = [
    '_base_/models/cascade_mask_rcnn_lsj.py',
    '_base_/datasets/coco_instance_lsj_640.py',
    '_base_/schedules/coco_lsj.py',
    '_base_/default_runtime_lsj.py',
]
# 32 GPUs x 8 images = 256 an iteration, learning rate 2e-3.
model = dict(
    data_preprocessor=dict(pad_size_divisor=640),  # the published windows, a 32nd of the image, suit squares alone
    backbone=dict(
        _delete_=True,
        type='mmext_backbones.MaxViT',
        arch='tiny',
        window_size='scaled',
        drop_path_rate=0.7,
        init_cfg=dict(type='Pretrained', checkpoint='timm://maxvit_tiny_tf_224.in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=1e-4))
