# Nobody published this recipe for Swin-B: the drop path rate is that of its Cascade Mask R-CNN 3x.
_base_ = 'swin_t_cascade_1x.py'
model = dict(
    backbone=dict(
        arch='base', drop_path_rate=0.3, init_cfg=dict(checkpoint='timm://swin_base_patch4_window7_224.ms_in1k')
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
