# Published without a config: windows and weights are assumed.
_base_ = 'swin_b_upernet_160k_in22k_640.py'
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='timm://swin_large_patch4_window12_384.ms_in22k')),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
