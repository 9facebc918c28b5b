# AdamW for 72 epochs, steps after 63 and 69, warm-up of 500 iterations; for 16 images an iteration.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../no_decay.py']
train_cfg = dict(max_epochs=72)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=72, by_epoch=True, milestones=[63, 69], gamma=0.1),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg={{_base_.no_decay}},
)
