# MaxViT-T from ImageNet-1K at 224 x 224, whose mean and std are the heads' own; other published weights expect 127.5.
maxvit_t = dict(
    _delete_=True,  # what stands in a model's base
    type='mmext_backbones.MaxViT',
    arch='tiny',
    init_cfg=dict(type='Pretrained', checkpoint='timm://maxvit_tiny_tf_224.in1k'),
)
