# As Sequencer's authors evaluate theirs; no result of ELSA-Swin was found.
_base_ = ['../elsa_swin_b_in1k.py', '../_base_/evaluation/imagenet_r.py']
test_dataloader = dict(dataset=dict(**_base_.imagenet_r, pipeline=_base_.test_pipeline))
test_evaluator = dict(**_base_.accuracy_r)
