# ImageNet-1K at 224 x 224 as published for VOLO, 128 images a GPU: RandAugment (two operations of level 9), a quarter
# of the images with an erased rectangle. Tested on the centre of an image whose short side is 233 (a crop of 0.96).
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=233, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
