# Nobody published this recipe for VOLO, nor a dense network: it is Swin's. The drop path rate is assumed.
_base_ = 'volo_d1_upernet_160k.py'
model = dict(
    backbone=dict(arch='d5', drop_path_rate=0.5, init_cfg=dict(checkpoint='timm://volo_d5_224.sail_in1k')),
    decode_head=dict(in_channels=[384, 384, 768, 768]),
    auxiliary_head=dict(in_channels=768),
)
