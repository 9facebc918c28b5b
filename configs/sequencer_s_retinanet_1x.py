# Nobody published this recipe for Sequencer: it is the one its authors use for other networks.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    'mmdet::_base_/default_runtime.py',
    '_base_/backbones/sequencer_s.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
model = dict(
    backbone=dict(**_base_.sequencer_s, drop_path_rate=0.1),
    neck=dict(in_channels=[192, 192, 384, 384]),
)
