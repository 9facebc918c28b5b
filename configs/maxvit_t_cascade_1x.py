# Nobody published this recipe for MaxViT: it is Swin's, with the drop path rate of MaxViT-T on ImageNet.
_base_ = [
    '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance_ms_crop.py',
    '_base_/schedules/coco_1x.py',
    'mmdet::_base_/default_runtime.py',
    '_base_/backbones/maxvit_t.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
model = dict(
    backbone=dict(**_base_.maxvit_t, drop_path_rate=0.2),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
