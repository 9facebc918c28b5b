# Nobody published this recipe for Sequencer: it is the one its authors use for other networks.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    'mmdet::_base_/default_runtime.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext_backbones.Sequencer2D',
        arch='small',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='timm://sequencer2d_s.in1k'),
    ),
    neck=dict(in_channels=[192, 192, 384, 384]),
)
