# Nobody published this recipe for Swin-L: it is Swin-B's, from the ImageNet-22K weights, the only ones of Swin-L.
_base_ = 'swin_t_maskrcnn_3x.py'
model = dict(
    backbone=dict(
        arch='large', drop_path_rate=0.3, init_cfg=dict(checkpoint='timm://swin_large_patch4_window7_224.ms_in22k')
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
