# Nobody published this recipe for MaxViT: it is Swin's, with the drop path rate of MaxViT-S on ImageNet.
_base_ = 'maxvit_t_maskrcnn_3x.py'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='timm://maxvit_small_tf_224.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
