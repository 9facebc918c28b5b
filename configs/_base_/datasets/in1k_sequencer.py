# ImageNet-1K at 224 x 224, 256 images a GPU: RandAugment (two operations of level 9), a quarter of the images with an
# erased rectangle. Tested on the centre of an image whose short side is 256 (a crop of 0.875).
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py'
train_dataloader = dict(batch_size=256)
