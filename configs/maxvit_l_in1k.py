_base_ = 'maxvit_t_in1k.py'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.6),
    head=dict(in_channels=1024),
)
