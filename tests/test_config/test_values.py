"""What a run reads from a config itself is looked at first; what our own configs say is right."""

import copy
import pickle
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmext_backbones.config.files import load_config
from mmext_backbones.config.options import KNOWN_KEYS
from mmext_backbones.config.values import KINDS, check_config, check_needed
from mmext_backbones.registry import MODELS
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.explain import explain

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))


def good():
    loader = {'batch_size': 2, 'num_workers': 0, 'dataset': {'type': 'D', 'pipeline': [{'type': 'T'}]}}
    return Config({
        'model': {'type': 'M'},
        'train_dataloader': loader,
        'train_cfg': {'max_iters': 3},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.1}},
        'default_hooks': {'checkpoint': {'type': 'CheckpointHook', 'interval': 1}, 'logger': None},
        'custom_hooks': [{'type': 'H'}],
        'load_from': None,
    })  # fmt: skip


def test_a_good_one():
    check_config(good())
    check_needed(good())


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        ('train_dataloader.batch_size', 'two', "train_dataloader.batch_size='two': expected a positive integer"),
        ('train_dataloader.batch_size', 0, 'a positive integer'),
        ('train_dataloader.num_workers', -1, 'an integer, 0 or more'),
        ('train_dataloader.dataset.pipeline', [3], 'a list of dicts, each with a type'),
        ('train_dataloader', [1], 'a dict with a dataset'),
        ('train_cfg.max_iters', 10**30, 'a positive integer'),
        ('train_cfg.max_iters', True, 'a positive integer'),
        ('train_cfg.val_interval', 1.5, 'a positive whole number'),
        ('optim_wrapper.optimizer.lr', float('nan'), 'a number, 0 or more'),
        ('optim_wrapper.optimizer.lr', -1, 'a number, 0 or more'),
        ('default_hooks.logger', 0, 'a dict of dicts, each with a type'),
        ('custom_hooks', [{'typ': 'H'}], 'a list of dicts, each with a type'),
        ('model', {'type': 3}, 'a dict with a type'),
        ('load_from', 3, 'a text'),
        ('resume', 'yes', 'True or False'),
        ('randomness', {'sed': 1}, 'a dict with seed'),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(key, value, expected):
    cfg = good()
    cfg.merge_from_dict({key: value}, allow_list_keys=False)
    with pytest.raises(UserError) as caught:
        check_config(cfg)
    assert expected in str(caught.value)
    assert key.partition('.')[0] in str(caught.value)


def test_what_belongs_together_and_what_is_needed():
    cfg = good()
    cfg.val_cfg = {}
    with pytest.raises(UserError, match='has val_cfg but no val_dataloader, val_evaluator'):
        check_needed(cfg)
    cfg = good()
    cfg.pop('optim_wrapper')
    with pytest.raises(UserError, match='no optim_wrapper'):
        check_needed(cfg)


def test_every_key_is_one_that_a_run_knows():
    assert {path.partition('.')[0] for path in KINDS} - {'vis_backends'} <= set(KNOWN_KEYS) | {'data_preprocessor'}


@pytest.mark.parametrize('path', CONFIGS[::6], ids=lambda path: path.stem)
def test_our_configs(path):
    pytest.importorskip('mmdet')
    cfg = Config.fromfile(path)
    check_config(cfg)
    check_needed(cfg)


def test_a_component_that_cannot_be_built_is_named():
    @MODELS.register_module(name='FailsWhenBuilt', force=True)
    class FailsWhenBuilt:
        def __init__(self, sizes):
            sum(sizes)

    with pytest.raises(TypeError) as caught:
        MODELS.build({'type': 'FailsWhenBuilt', 'sizes': 3})
    text = explain(caught.value)
    assert 'FailsWhenBuilt (' in text
    assert "TypeError: 'int' object is not iterable" in text
    assert "'sizes': 3" in text
    assert '--traceback' in text


@pytest.mark.parametrize(('module', 'named'), [('mmpretrain.heads', True), ('mmext_backbones.heads', False)])
def test_a_part_of_a_network_that_fails_as_it_runs(module, named):
    class Head(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    Head.__module__ = module

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = Head(4, 2)

        def train_step(self):
            return self.head(torch.zeros(1, 3))

    with pytest.raises(RuntimeError) as caught:
        Model().train_step()
    text = explain(caught.value)
    assert (text is not None) is named  # a bug of ours looks like a bug
    if named:
        start, _, reason = text.partition('RuntimeError: ')
        assert start == 'Head (mmpretrain.heads) fails as the network runs: '
        assert 'mat1 and mat2 shapes' in reason


def test_bases_in_a_circle_and_configs_that_end_the_program(tmp_path):
    for name, base in (('a', 'b'), ('b', 'c'), ('c', 'a')):
        (tmp_path / f'{name}.py').write_text(f"_base_ = '{base}.py'\n")
    with pytest.raises(UserError, match=r'its bases are a circle: \S*a.py -> \S*b.py -> \S*c.py -> \S*a.py$'):
        load_config(str(tmp_path / 'a.py'))
    (tmp_path / 'exit.py').write_text('raise SystemExit(0)\n')
    with pytest.raises(UserError, match=r'exit.py.*ends the program'):
        load_config(str(tmp_path / 'exit.py'))


def test_a_config_is_formatted_once(tmp_path, monkeypatch):
    (tmp_path / 'x.py').write_text("model = dict(type='A', size=(1, 2))\n")
    plain, cfg = Config.fromfile(tmp_path / 'x.py'), load_config(str(tmp_path / 'x.py'))
    expected = plain.pretty_text
    assert cfg.pretty_text == expected
    with monkeypatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', None)  # some versions import it when they need it
        patch.setattr(mmengine.config.config, 'FormatCode', None, raising=False)
        assert copy.deepcopy(cfg).pretty_text == pickle.loads(pickle.dumps(cfg)).pretty_text == expected
    cfg.model.size = (1, 3)
    assert cfg.pretty_text == expected.replace('2', '3')
