# Nobody published this recipe for MaxViT: it is Swin's, with the drop path rate of MaxViT-B on ImageNet.
_base_ = 'maxvit_t_upernet_160k.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(checkpoint='timm://maxvit_base_tf_224.in1k')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
