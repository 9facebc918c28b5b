# AdamW for 300 epochs, warm-up of 20, cosine to 1e-5, gradients cut at a norm of 5; for 1024 images an iteration. No
# decay of biases, norms and bias tables.
_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'
optim_wrapper = dict(clip_grad=dict(max_norm=5.0))
