# Nobody published this recipe for Sequencer: it is the one its authors use for other networks.
_base_ = [
    '_base_/models/semantic_fpn.py',
    '_base_/datasets/ade20k.py',
    '_base_/schedules/ade20k_40k.py',
    'mmseg::_base_/default_runtime.py',
    '_base_/backbones/sequencer_s.py',
]
# 8 GPUs x 4 images = 32 an iteration, learning rate 2e-4.
model = dict(
    backbone=dict(**_base_.sequencer_s, drop_path_rate=0.1),
    neck=dict(in_channels=[192, 192, 384, 384]),
)
train_dataloader = dict(batch_size=4, num_workers=4)
