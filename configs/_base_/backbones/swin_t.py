# Swin-T from ImageNet-1K.
swin_t = dict(
    _delete_=True,  # what stands in a model's base
    type='mmext_backbones.SwinTransformer',
    arch='tiny',
    init_cfg=dict(type='Pretrained', checkpoint='timm://swin_tiny_patch4_window7_224.ms_in1k'),
)
