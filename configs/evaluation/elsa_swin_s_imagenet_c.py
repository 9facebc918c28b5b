# As Sequencer's authors evaluate theirs; no result of ELSA-Swin was found.
_base_ = ['../elsa_swin_s_in1k.py', '../_base_/evaluation/imagenet_c.py']
test_dataloader = dict(dataset=dict(**_base_.imagenet_c))
test_evaluator = dict(**_base_.corruption_error)
