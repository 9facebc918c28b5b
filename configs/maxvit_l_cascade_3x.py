# Nobody published this recipe for MaxViT: it is Swin's, with the drop path rate of MaxViT-L on ImageNet.
_base_ = 'maxvit_t_cascade_3x.py'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.6, init_cfg=dict(checkpoint='timm://maxvit_large_tf_224.in1k')),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
