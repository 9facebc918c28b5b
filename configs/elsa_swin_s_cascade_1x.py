_base_ = 'elsa_swin_t_cascade_1x.py'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.2),
)
