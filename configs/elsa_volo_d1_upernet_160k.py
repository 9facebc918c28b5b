# A reading of a network that nobody published, without weights (docs/backbones/elsa_volo.md). The recipe is VOLO-D1's.
_base_ = [
    '_base_/models/upernet.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_160k.py',
    'mmseg::_base_/default_runtime.py',
    '_base_/backbones/elsa_volo_d1.py',
]
# 8 GPUs x 2 images = 16 an iteration, learning rate 6e-5.
model = dict(
    backbone=dict(**_base_.elsa_volo_d1, drop_path_rate=0.1),
    decode_head=dict(in_channels=[192, 192, 384, 384]),
    auxiliary_head=dict(in_channels=384),
)
