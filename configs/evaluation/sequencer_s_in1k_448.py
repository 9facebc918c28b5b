# At twice the size of the training, without any more of it: tools/test.py with timm://sequencer2d_s.in1k
_base_ = ['../sequencer_s_in1k.py', '../_base_/evaluation/in1k_448.py']
test_dataloader = dict(dataset=dict(pipeline=_base_.pipeline_448))
