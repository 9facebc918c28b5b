# Fine-tuning with AdamW for 30 epochs, warm-up of 5, cosine, hardly any decay, gradients cut at a norm of 5; for 1024
# images an iteration.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=4e-7, by_epoch=True, begin=5, end=30, convert_to_iter_based=True),
]
