# AdamW for 36 epochs, steps after 27 and 33, warm-up of 500 iterations; for 16 images an iteration.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../no_decay.py']
train_cfg = dict(max_epochs=36)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33], gamma=0.1),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg={{_base_.no_decay}},
)
