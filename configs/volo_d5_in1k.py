# The drop path rate is assumed.
# Evaluate the published classifier: tools/test.py with timm://volo_d5_224.sail_in1k
_base_ = 'volo_d1_in1k.py'
model = dict(
    backbone=dict(arch='d5', drop_path_rate=0.5),
    head=dict(in_channels=768, num_heads=16, mlp_ratio=4),
)
optim_wrapper = dict(optimizer=dict(lr=8e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1.25e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
