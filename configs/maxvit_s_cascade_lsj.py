_base_ = 'maxvit_t_cascade_lsj.py'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.5, init_cfg=dict(checkpoint='timm://maxvit_small_tf_224.in1k')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
