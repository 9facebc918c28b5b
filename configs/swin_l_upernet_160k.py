# Nobody published this recipe for Swin-L: it is Swin-B's, from the ImageNet-22K weights at 224 x 224.
_base_ = 'swin_t_upernet_160k.py'
model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='timm://swin_large_patch4_window7_224.ms_in22k')),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
