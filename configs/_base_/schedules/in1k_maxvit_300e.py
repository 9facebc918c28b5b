# AdamW for 300 epochs, warm-up of 10000 iterations, cosine to 1e-5, gradients cut at a norm of 1, an average of the
# weights that is the one evaluated; for 4096 images an iteration.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'
optim_wrapper = dict(optimizer=dict(lr=3e-3), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=False, begin=0, end=10000),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=32, end=300, convert_to_iter_based=True),
]
custom_hooks = [dict(type='EMAHook', momentum=1e-4, update_buffers=True)]
auto_scale_lr = dict(base_batch_size=4096)
