# ImageNet-R, by the accuracy among its 200 classes; a config puts in the test pipeline of its classifier.
imagenet_r = dict(
    _delete_=True,  # what stands in a classifier's config
    type='mmext_backbones.ImageNetSubset',
    data_root='data/imagenet-r',
    subset='imagenet_r',
    test_mode=True,
)
accuracy_r = dict(_delete_=True, type='mmext_backbones.SubsetAccuracy', subset='imagenet_r', topk=(1, 5))
