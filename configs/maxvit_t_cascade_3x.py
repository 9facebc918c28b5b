# Nobody published this recipe for MaxViT: it is Swin's, with the drop path rate of MaxViT-T on ImageNet.
_base_ = [
    '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance_ms_crop.py',
    '_base_/schedules/coco_3x.py',
    'mmdet::_base_/default_runtime.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
# ImageNet's mean and std suit the 224 x 224 ImageNet-1K weights; all other published ones expect 127.5 for both.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext_backbones.MaxViT',
        arch='tiny',
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='timm://maxvit_tiny_tf_224.in1k'),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
