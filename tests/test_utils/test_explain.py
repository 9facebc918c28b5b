"""Which part of a config an error is of, where mmengine's functions have another name for it."""

import pytest
import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mmext_backbones.utils.explain import explain


@DATASETS.register_module(force=True)
class ThreeNumbers(list):
    def __init__(self):
        super().__init__([1, 2, 3])


DATA = {
    'dataset': {'type': 'ThreeNumbers'},
    'sampler': {'type': 'DefaultSampler', 'shuffle': False},
    'batch_size': 1,
}
CONFIG = {
    'train_dataloader': DATA,
    'train_cfg': {'by_epoch': False, 'max_iters': 1},
    'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1}},
    'val_dataloader': DATA,
    'val_cfg': {},
    'val_evaluator': [],
}


@pytest.mark.parametrize(
    ('loop', 'options', 'key'),
    [
        ('train', {'train_dataloader': {**DATA, 'x.y': 1}}, 'train_dataloader'),
        ('val', {'val_dataloader': {**DATA, 'x.y': 1}}, 'val_dataloader'),
        ('train', {'train_cfg': {'by_epoch': False, 'max_iters': 1, 'x': 1}}, 'train_cfg'),
        ('val', {'val_cfg': {'x': 1}}, 'val_cfg'),
        ('train', {'randomness': {'seed': -1}}, 'randomness.seed'),
    ],
)
def test_the_key_is_named(loop, options, key, tmp_path):
    config = CONFIG | options

    def run():
        runner = Runner(torch.nn.Linear(1, 1), str(tmp_path), experiment_name=tmp_path.name, **config)
        getattr(runner, f'build_{loop}_loop')(config[f'{loop}_cfg'])

    with pytest.raises((TypeError, ValueError)) as caught:
        run()
    assert f"the config's {key} cannot be used: " in explain(caught.value)
