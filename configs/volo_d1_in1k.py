_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/in1k_volo.py',
    '_base_/schedules/in1k_volo_310e.py',
    'mmpretrain::_base_/default_runtime.py',
]
# 8 GPUs x 128 images = 1024 an iteration, learning rate 1.6e-3.
# The authors mix the tokens of two images and learn a label of every token, which a teacher wrote into files. Here
# CutMix stands for the first, and the label of the image for the second: 83.8 without token labels, they say.
# Evaluate the published classifier: tools/test.py with timm://volo_d1_224.sail_in1k
model = dict(
    backbone=dict(type='mmext_backbones.VOLO', arch='d1', pyramid=False, out_indices=(3,), drop_path_rate=0.1),
    neck=None,
    head=dict(type='mmext_backbones.VOLOClsHead', in_channels=384, num_heads=12),
    train_cfg=dict(augments=[dict(type='CutMix', alpha=1.0)]),
)
