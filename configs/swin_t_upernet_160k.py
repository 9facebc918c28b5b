_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
    'mmseg::_base_/default_runtime.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 6e-5.
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext_backbones.SwinTransformer',
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='timm://swin_tiny_patch4_window7_224.ms_in1k'),
    ),
)
