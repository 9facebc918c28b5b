# AdamW for 160k iterations, linear decay to 0 under a warm-up of 1500 iterations; for 16 images an iteration.
_base_ = ['mmseg::_base_/schedules/schedule_160k.py', '../no_decay.py']
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg={{_base_.no_decay}},
)
# the decay runs from the first iteration and the warm-up multiplies it
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=160000),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
