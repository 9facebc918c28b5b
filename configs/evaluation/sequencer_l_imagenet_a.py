# As its authors evaluate it: tools/test.py with timm://sequencer2d_l.in1k
_base_ = ['../sequencer_l_in1k.py', '../_base_/evaluation/imagenet_a.py']
test_dataloader = dict(dataset=dict(**_base_.imagenet_a, pipeline=_base_.test_pipeline))
test_evaluator = dict(**_base_.accuracy_a)
