# The drop path rate is assumed.
_base_ = 'sequencer_s_in1k.py'
model = dict(
    backbone=dict(arch='medium', drop_path_rate=0.2),
)
