_base_ = [
    '_base_/models/classifier.py',
    '_base_/datasets/in1k_sequencer.py',
    '_base_/schedules/in1k_sequencer_300e.py',
    'mmpretrain::_base_/default_runtime.py',
]
# 8 GPUs x 256 images = 2048 an iteration, learning rate 2e-3.
# Evaluate the published classifier: tools/test.py with timm://sequencer2d_s.in1k
model = dict(
    backbone=dict(
        type='mmext_backbones.Sequencer2D',
        arch='small',
        patch_size=7,
        pyramid=False,
        out_indices=(3,),
        drop_path_rate=0.1,
    ),
    neck=None,
    head=dict(type='mmext_backbones.SequencerClsHead', in_channels=384),
)
