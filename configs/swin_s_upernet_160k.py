_base_ = 'swin_t_upernet_160k.py'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint='timm://swin_small_patch4_window7_224.ms_in1k')
    ),
)
