# Nobody published this recipe for Swin-S: it is that of ELSA-Swin-S.
_base_ = 'swin_t_maskrcnn_1x.py'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.2, init_cfg=dict(checkpoint='timm://swin_small_patch4_window7_224.ms_in1k')
    ),
)
