# ImageNet-1K at 448 x 448: the centre of an image whose short side is 512, a crop of 0.875 as at 224.
pipeline_448 = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=512, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=448),
    dict(type='PackInputs'),
]
