# Semantic FPN for 150 classes at crops of 512; a leaf puts in the backbone.
_base_ = 'mmseg::_base_/models/fpn_r50.py'
model = dict(data_preprocessor=dict(size=(512, 512)), pretrained=None, decode_head=dict(num_classes=150))
