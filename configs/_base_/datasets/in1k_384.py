# ImageNet-1K at 384 x 384, 16 images a GPU, without other augmentation than crops and flips. Tested on the centre of an
# image whose short side is 384.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_384.py'
train_dataloader = dict(batch_size=16)
