_base_ = 'maxvit_t_cascade_lsj.py'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.8, init_cfg=dict(checkpoint='timm://maxvit_large_tf_224.in1k')),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
