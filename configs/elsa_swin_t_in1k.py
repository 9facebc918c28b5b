_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/in1k.py',
    '_base_/schedules/in1k_300e.py',
    'mmpretrain::_base_/default_runtime.py',
]
# 8 GPUs x 128 images = 1024 an iteration, learning rate 1e-3; ten more epochs at 1e-5.
model = dict(
    backbone=dict(
        type='mmext_backbones.ELSASwin', arch='tiny', out_indices=(3,), shift_single_window=False, drop_path_rate=0.1
    ),
    head=dict(in_channels=768),
)
train_cfg = dict(max_epochs=310)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
