# Nobody published this recipe for Sequencer: it is Swin's, with the drop path rate of Sequencer2D-S on ImageNet.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '_base_/datasets/coco_instance_ms_crop.py',
    '_base_/schedules/coco_3x.py',
    'mmdet::_base_/default_runtime.py',
    '_base_/backbones/sequencer_s.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
model = dict(
    backbone=dict(**_base_.sequencer_s, drop_path_rate=0.1),
    neck=dict(in_channels=[192, 192, 384, 384]),
)
