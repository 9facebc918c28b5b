_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/in1k.py',
    '_base_/schedules/in1k_300e.py',
    'mmpretrain::_base_/default_runtime.py',
]
# 8 GPUs x 128 images = 1024 an iteration, learning rate 1e-3.
# Evaluate the published classifier: tools/test.py with timm://swin_tiny_patch4_window7_224.ms_in1k
model = dict(
    backbone=dict(
        type='mmext_backbones.SwinTransformer',
        arch='tiny',
        out_indices=(3,),
        shift_single_window=False,
        drop_path_rate=0.2,
    ),
    head=dict(in_channels=768),
)
