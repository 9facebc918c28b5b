_base_ = 'elsa_swin_t_upernet_160k.py'
model = dict(
    backbone=dict(arch='small', drop_path_rate=0.3),
)
