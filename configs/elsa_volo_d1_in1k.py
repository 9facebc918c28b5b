# A reading of a network that nobody published (docs/backbones/elsa_volo.md); the drop path rate, VOLO's, is assumed.
_base_ = 'volo_d1_in1k.py'
model = dict(
    backbone=dict(type='mmext_backbones.ELSAVOLO'),
)
