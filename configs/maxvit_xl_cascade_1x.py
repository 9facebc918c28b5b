# Nobody published this recipe for MaxViT: it is Swin's, with the drop path rate of MaxViT-XL on ImageNet.
_base_ = 'maxvit_t_cascade_1x.py'
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),  # of the ImageNet-21K weights
    backbone=dict(arch='xlarge', drop_path_rate=0.7, init_cfg=dict(checkpoint='timm://maxvit_xlarge_tf_224.in21k')),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
