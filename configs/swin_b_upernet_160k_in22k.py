# From ImageNet-22K weights at 384 x 384, windows of 12.
_base_ = 'swin_t_upernet_160k.py'
model = dict(
    backbone=dict(
        arch='base',
        window_size=12,
        init_cfg=dict(checkpoint='timm://swin_base_patch4_window12_384.ms_in22k'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
