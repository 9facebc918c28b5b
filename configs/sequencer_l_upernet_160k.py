# Nobody published this recipe for Sequencer: it is Swin's.
# The drop path rate is assumed.
_base_ = 'sequencer_s_upernet_160k.py'
model = dict(
    backbone=dict(arch='large', drop_path_rate=0.4, init_cfg=dict(checkpoint='timm://sequencer2d_l.in1k')),
)
