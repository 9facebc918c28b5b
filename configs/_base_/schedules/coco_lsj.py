# AdamW for 92600 iterations, 200 epochs of 256 images an iteration: warm-up of 6000, cosine to 3 %, an average of the
# weights that is the one evaluated.
_base_ = '../no_decay.py'
train_cfg = dict(type='IterBasedTrainLoop', max_iters=92600, val_interval=4630)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg={{_base_.no_decay}},
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, by_epoch=False, begin=0, end=6000),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.03, by_epoch=False, begin=6000, end=92600, T_max=86600),
]
custom_hooks = [dict(type='EMAHook', momentum=2e-4, update_buffers=True)]
auto_scale_lr = dict(enable=False, base_batch_size=256)
