# ELSA-Swin-T. Its ImageNet weights stand on no hub: fetch the file that github.com/damo-cv/ELSA links, then
# init_cfg=dict(type='Pretrained', checkpoint='elsa_swin_t.pth').
elsa_swin_t = dict(
    _delete_=True,  # what stands in a model's base
    type='mmext_backbones.ELSASwin',
    arch='tiny',
    init_cfg=None,
)
