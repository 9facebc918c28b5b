# ImageNet-C, whose images are stored at 224 x 224 and taken whole, by its mean corruption error.
imagenet_c = dict(
    _delete_=True,  # what stands in a classifier's config
    type='mmext_backbones.ImageNetC',
    data_root='data/imagenet-c',
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
        dict(type='CenterCrop', crop_size=224),
        dict(type='PackInputs'),
    ],
)
corruption_error = dict(_delete_=True, type='mmext_backbones.CorruptionError')
