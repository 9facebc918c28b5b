# Published without a config: the weights are assumed; the published FLOPs of Swin-B are those of windows of 7.
_base_ = 'swin_b_upernet_160k_in22k_640.py'
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='timm://swin_large_patch4_window7_224.ms_in22k')),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
