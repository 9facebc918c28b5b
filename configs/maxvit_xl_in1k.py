_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/in1k_384.py',
    '_base_/schedules/in1k_constant_30e.py',
    'mmpretrain::_base_/default_runtime.py',
]
# 32 GPUs x 16 images = 512 an iteration, learning rate 5e-5: fine-tuning at 384 x 384, as published.
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type='mmext_backbones.MaxViT',
        arch='xlarge',
        window_size=12,
        out_indices=(3,),
        drop_path_rate=0.7,
        init_cfg=dict(type='Pretrained', checkpoint='timm://maxvit_xlarge_tf_224.in21k'),
    ),
    neck=None,
    head=dict(type='mmext_backbones.MaxViTClsHead', in_channels=1536),
)
