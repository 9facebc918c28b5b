# Nobody published this recipe for ELSA-Swin-B: it is Swin-B's.
_base_ = 'elsa_swin_t_upernet_160k.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
