# Nobody published this recipe for ELSA-Swin-B: it is Swin-B's.
_base_ = 'elsa_swin_t_maskrcnn_1x.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
