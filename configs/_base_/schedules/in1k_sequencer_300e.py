# AdamW for 300 epochs, warm-up of 20, cosine to 1e-5, gradients as they are; for 2048 images an iteration. No decay of
# biases and norms.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=2048)
