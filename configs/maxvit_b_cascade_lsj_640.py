# Learning rate, decay and drop path of MaxViT-B were not published: they are those of MaxViT-S.
_base_ = 'maxvit_t_cascade_lsj_640.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.5, init_cfg=dict(checkpoint='timm://maxvit_base_tf_224.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(optimizer=dict(lr=3e-3, weight_decay=0.05))
