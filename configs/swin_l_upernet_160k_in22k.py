# From ImageNet-22K weights at 384 x 384, windows of 12.
_base_ = 'swin_t_upernet_160k.py'
model = dict(
    backbone=dict(
        arch='large',
        window_size=12,
        init_cfg=dict(checkpoint='timm://swin_large_patch4_window12_384.ms_in22k'),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
