# The drop path rate of MaxViT-B was not published: it is that of MaxViT-S.
_base_ = 'maxvit_t_cascade_lsj.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint='timm://maxvit_base_tf_224.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
