# AdamW for 40k iterations, polynomial decay of power 0.9 to 0; for 32 images an iteration.
_base_ = ['mmseg::_base_/schedules/schedule_40k.py', '../no_decay.py']
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    paramwise_cfg={{_base_.no_decay}},
)
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=40000, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=32)
