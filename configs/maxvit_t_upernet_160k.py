# Nobody published this recipe for MaxViT: it is Swin's, with the drop path rate of MaxViT-T on ImageNet.
_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
    'mmseg::_base_/default_runtime.py',
    '_base_/backbones/maxvit_t.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 6e-5.
model = dict(
    backbone=dict(**_base_.maxvit_t, drop_path_rate=0.2),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
