# As its authors evaluate it: tools/test.py with timm://sequencer2d_l.in1k
_base_ = ['../sequencer_l_in1k.py', '../_base_/evaluation/imagenet_c.py']
test_dataloader = dict(dataset=dict(**_base_.imagenet_c))
test_evaluator = dict(**_base_.corruption_error)
