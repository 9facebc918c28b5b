# UPerHead with an auxiliary FCN head for 150 classes at crops of 512; a leaf puts in the backbone.
_base_ = 'mmseg::_base_/models/upernet_swin.py'
model = dict(
    data_preprocessor=dict(size=(512, 512)), decode_head=dict(num_classes=150), auxiliary_head=dict(num_classes=150)
)
