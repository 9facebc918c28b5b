# Nobody published this recipe for VOLO, nor a dense network: it is Swin's, with VOLO-D3's drop path rate on ImageNet.
_base_ = 'volo_d1_upernet_160k.py'
model = dict(
    backbone=dict(arch='d3', drop_path_rate=0.5, init_cfg=dict(checkpoint='timm://volo_d3_224.sail_in1k')),
    decode_head=dict(in_channels=[256, 256, 512, 512]),
    auxiliary_head=dict(in_channels=512),
)
