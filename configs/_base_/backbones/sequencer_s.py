# Sequencer2D-S from ImageNet-1K, with patches of 8 and a pyramid.
sequencer_s = dict(
    _delete_=True,  # what stands in a model's base
    type='mmext_backbones.Sequencer2D',
    arch='small',
    init_cfg=dict(type='Pretrained', checkpoint='timm://sequencer2d_s.in1k'),
)
