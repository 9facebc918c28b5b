# ImageNet-A, by the accuracy among its 200 classes; a config puts in the test pipeline of its classifier.
imagenet_a = dict(
    _delete_=True,  # what stands in a classifier's config
    type='mmext_backbones.ImageNetSubset',
    data_root='data/imagenet-a',
    subset='imagenet_a',
    test_mode=True,
)
accuracy_a = dict(_delete_=True, type='mmext_backbones.SubsetAccuracy', subset='imagenet_a', topk=(1, 5))
