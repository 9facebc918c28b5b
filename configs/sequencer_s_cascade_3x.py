# Nobody published this recipe for Sequencer: it is Swin's, with the drop path rate of Sequencer2D-S on ImageNet.
_base_ = [
    '_base_/models/cascade_mask_rcnn.py',
    '_base_/datasets/coco_instance_ms_crop.py',
    '_base_/schedules/coco_3x.py',
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
