# AdamW for 300 epochs and ten more at 1e-5, warm-up of 20 from 1e-6, cosine, gradients as they are; for 1024 images an
# iteration. No decay of biases, norms, positions and class token.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'
optim_wrapper = dict(optimizer=dict(lr=1.6e-3), paramwise_cfg=dict(custom_keys={'.cls_token': dict(decay_mult=0.0)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=6.25e-4, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=310)
