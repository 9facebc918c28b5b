# HTC++ after the paper's description, no config was published: test scale, weights and drop path rate are assumed.
_base_ = [
    '_base_/models/htc.py',
    '_base_/datasets/coco_htc.py',
    '_base_/schedules/coco_3x.py',
    'mmdet::_base_/default_runtime.py',
    '_base_/backbones/swin_t.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 1e-4.
weights = dict(type='Pretrained', checkpoint='timm://swin_large_patch4_window7_224.ms_in22k')
model = dict(
    backbone={**_base_.swin_t, 'arch': 'large', 'drop_path_rate': 0.2, 'init_cfg': weights},
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
