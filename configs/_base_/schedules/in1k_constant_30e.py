# Fine-tuning with AdamW for 30 epochs at one rate, hardly any decay, gradients cut at a norm of 1; for 512 images an
# iteration.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'
train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=5e-5, weight_decay=1e-8), clip_grad=dict(max_norm=1.0))
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=True, begin=0, end=30)]
auto_scale_lr = dict(base_batch_size=512)
