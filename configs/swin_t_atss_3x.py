# After the paper's description, no config was published: the training is that of the authors' Cascade Mask R-CNN 3x.
_base_ = [
    '_base_/models/atss.py',
    '_base_/datasets/coco_detection_ms_crop.py',
    '_base_/schedules/coco_3x.py',
    'mmdet::_base_/default_runtime.py',
    '_base_/backbones/swin_t.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
model = dict(
    backbone=dict(**_base_.swin_t, drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
