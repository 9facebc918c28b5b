_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
    'mmseg::_base_/default_runtime.py',
    '_base_/backbones/swin_t.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 6e-5.
model = dict(
    backbone=dict(**_base_.swin_t, drop_path_rate=0.3),
)
