# A reading of a network that nobody published, without weights (docs/backbones/elsa_volo.md). Nobody published this
# recipe for it: it is VOLO-D1's, whose drop path rate is assumed.
_base_ = 'volo_d1_upernet_160k.py'
model = dict(
    backbone=dict(type='mmext_backbones.ELSAVOLO', init_cfg=None),
)
