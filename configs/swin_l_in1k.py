# Fine-tuning from ImageNet-22K, the only weights of Swin-L.
_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/in1k.py',
    '_base_/schedules/in1k_30e.py',
    'mmpretrain::_base_/default_runtime.py',
]
# 8 GPUs x 128 images = 1024 an iteration, learning rate 4e-5.
model = dict(
    backbone=dict(
        type='mmext_backbones.SwinTransformer',
        arch='large',
        out_indices=(3,),
        shift_single_window=False,
        drop_path_rate=0.2,
        init_cfg=dict(type='Pretrained', checkpoint='timm://swin_large_patch4_window7_224.ms_in22k'),
    ),
    head=dict(in_channels=1536),
)
