_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/in1k_maxvit.py',
    '_base_/schedules/in1k_maxvit_300e.py',
    'mmpretrain::_base_/default_runtime.py',
]
# 32 GPUs x 128 images = 4096 an iteration, learning rate 3e-3.
# Evaluate the published classifier: tools/test.py with timm://maxvit_tiny_tf_224.in1k
model = dict(
    backbone=dict(type='mmext_backbones.MaxViT', arch='tiny', out_indices=(3,), drop_path_rate=0.2),
    neck=None,
    head=dict(type='mmext_backbones.MaxViTClsHead', in_channels=512),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]),
)
