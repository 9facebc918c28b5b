# VOLO-D1 from ImageNet-1K at 224 x 224, with a pyramid. The batch norms of its stem saw 128 images a GPU: they keep
# their statistics.
volo_d1 = dict(
    _delete_=True,  # what stands in a model's base
    type='mmext_backbones.VOLO',
    arch='d1',
    norm_eval=True,
    init_cfg=dict(type='Pretrained', checkpoint='timm://volo_d1_224.sail_in1k'),
)
