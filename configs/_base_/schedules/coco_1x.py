# AdamW for 12 epochs, steps after 8 and 11, warm-up of 500 iterations; for 16 images an iteration.
_base_ = ['mmdet::_base_/schedules/schedule_1x.py', '../no_decay.py']
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg={{_base_.no_decay}},
)
