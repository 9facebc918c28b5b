# Nobody published this recipe for VOLO, nor a dense network: it is Swin's, with VOLO-D1's drop path rate on ImageNet.
_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
    'mmseg::_base_/default_runtime.py',
    '_base_/backbones/volo_d1.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 6e-5.
model = dict(
    backbone=dict(**_base_.volo_d1, drop_path_rate=0.1),
    decode_head=dict(in_channels=[192, 192, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
