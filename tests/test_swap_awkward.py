"""Configs as people write them: whatever a config of mmengine may hold, its swapped child is read again and runs."""

import json
import math
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmext_backbones.config.files import load_config
from mmext_backbones.config.writing import difference, unscoped, written
from mmext_backbones.swap import __main__ as command
from mmext_backbones.swap import swap_backbone
from mmext_backbones.swap.checks import build_model, forward
from mmext_backbones.utils.errors import UserError

SWIN = 'mmext_backbones.SwinTransformer'
TINY = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
)
data_preprocessor = dict(num_classes=3, mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), clip_grad=None)
"""
SCOPED = TINY.replace("default_scope = 'mmpretrain'", '')
for _name in ('ImageClassifier', 'ResNet', 'GlobalAveragePooling', 'LinearClsHead'):
    SCOPED = SCOPED.replace(f"'{_name}'", f"'mmpretrain.{_name}'")
TOKEN = TINY.replace("neck=dict(type='GlobalAveragePooling')", 'neck=None').replace('=512', '=192')
TOKEN = TOKEN.replace(
    "type='ResNet', depth=18, num_stages=4, out_indices=(3,)",
    "type='VisionTransformer', arch='deit-t', img_size=64, out_type='cls_token'",
)
LAYER_DECAY = TINY.replace(
    'clip_grad=None',
    "constructor='LearningRateDecayOptimWrapperConstructor', "
    'paramwise_cfg=dict(layer_decay_rate=0.5, num_layers=6, flat_decay_mult=rest, custom_keys={keys})',
)
PYTHON = 'from mmpretrain.models import ImageClassifier, ResNet\n'
PYTHON += TINY.replace("'ImageClassifier'", 'ImageClassifier').replace("'ResNet'", 'ResNet')
PARTS = """
from mmpretrain.models import LinearClsHead
from mmpretrain.registry import MODELS
from torch import nn

@MODELS.register_module(force=True)
class ParityHead(LinearClsHead):
    pass

@MODELS.register_module(force=True)
class ParityNeck(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.scale = nn.BatchNorm2d(in_channels)

    def forward(self, maps):
        return (self.scale(maps[-1]).mean((2, 3)),)
"""
OF_A_PROJECT = "custom_imports = dict(imports=['parity_parts'], allow_failed_imports=False)\n"
OF_A_PROJECT += TINY.replace("'LinearClsHead'", "'ParityHead'")
OF_A_PROJECT = OF_A_PROJECT.replace("type='GlobalAveragePooling'", "type='ParityNeck', in_channels=512")

# name: the config, the files beside it, and what the child must read as
TEXT = {
    'predefined variables': (
        TINY + "work_dir = '{{ fileDirname }}/{{fileBasenameNoExtension}}'\nself = '{{fileBasename}}{{ fileExtname }}'",
        {},
        {'work_dir': '{folder}/mine', 'self': 'mine.py.py'},
    ),
    'environment': (
        TINY.replace('18', "{{'$PARITY_DEPTH:34'}}") + "data_root = '{{$PARITY_ROOT:/data}}/x'",
        {},
        {'data_root': '/from/outside/x'},
    ),
    'variables of the base in Python': (
        "_base_ = ['base.py', 'number.py']\nmodel = dict(head=dict(num_classes=_base_.number + 1))\n"
        'optim_wrapper = _base_.optim_wrapper\noptim_wrapper.update(accumulative_counts=2)',
        {'base.py': TINY, 'number.py': 'number = 4'},
        {'model.head.num_classes': 5, 'optim_wrapper.accumulative_counts': 2, 'number': 4},
    ),
    'base of a base in another folder': (
        "_base_ = './parts/middle.py'\nmodel = dict(head=dict(num_classes=7))",
        {'base.py': TINY, 'parts/middle.py': "_base_ = '../base.py'\nauto_scale_lr = None"},
        {'model.head.num_classes': 7, 'auto_scale_lr': None},
    ),
    'types with their library and no scope': (SCOPED, {}, {'model.head.type': 'mmpretrain.LinearClsHead'}),
    'another default scope': (
        TINY.replace("scope = 'mmpretrain'", "scope = 'mmdet'").replace("type='Ima", "_scope_='mmpretrain', type='Ima"),
        {},
        {'default_scope': 'mmdet'},
    ),
    'deleted by the child': (
        "_base_ = 'base.py'\nmodel = dict(head=dict(_delete_=True, type='StackedLinearClsHead', num_classes=3, "
        "in_channels=512, mid_channels=[8]))\noptim_wrapper = dict(_delete_=True, optimizer=dict(type='Lion'))",
        {'base.py': TINY},
        {'model.head.mid_channels': [8], 'optim_wrapper.optimizer.type': 'Lion', 'model.head.in_channels': 768},
    ),
    'nothing where a dict comes': (TOKEN, {}, {'model.neck.type': 'GlobalAveragePooling'}),
    'no rules': (
        TINY.replace('clip_grad', 'paramwise_cfg'),
        {},
        {'optim_wrapper.paramwise_cfg.custom_keys.norm': {'decay_mult': 0.0}},
    ),
    'no keys': (
        TINY.replace('clip_grad=None', 'paramwise_cfg=dict(custom_keys=None)'),
        {},
        {'optim_wrapper.paramwise_cfg.custom_keys.norm': {'decay_mult': 0.0}},
    ),
    'no optimizer': (TINY + 'optim_wrapper = None\nauto_scale_lr = None', {}, {'optim_wrapper': None}),
    'keys that are words of Python': (
        'rest = 1\n' + LAYER_DECAY.replace('{keys}', "{'lambda': dict(lr_mult=2.0), 'from.in': dict(lr_mult=0.5)}"),
        {},
        {'optim_wrapper.paramwise_cfg.custom_keys': {'lambda': {'lr_mult': 2.0}, 'from.in': {'lr_mult': 0.5}}},
    ),
    'infinity': (
        "rest = [float('inf'), -float('inf')]\n" + LAYER_DECAY.format(keys='dict()'),
        {},
        {'optim_wrapper.paramwise_cfg.flat_decay_mult': [math.inf, -math.inf]},
    ),
    'numbers of numpy': (
        "np = __import__('numpy')\nrest = np.float64(0.5)\nspaced = np.linspace(0, 1, 3)\n"
        + LAYER_DECAY.format(keys='dict()'),
        {},
        {'optim_wrapper.paramwise_cfg.flat_decay_mult': 0.5},
    ),
    'no number': (TINY + "unknown = float('nan')", {}, {}),
    'functions and classes': (
        TINY + 'def double(x):\n    return 2 * x\nclass A:\n    pass\nnumber = double(2)',
        {},
        {'number': 4},
    ),
    'one scheduler': (
        TINY + "param_scheduler = dict(type='CosineAnnealingLR', eta_min=1e-3, T_max=5)",
        {},
        {'param_scheduler.eta_min': 1e-5},
    ),
    'several test sets': (
        TINY + "test_dataloader = [dict(dataset=dict(type='A')), dict(dataset=dict(type='B'))]",
        {},
        {},
    ),
    'own modules beside the config': (
        OF_A_PROJECT,
        {'parity_parts.py': PARTS},
        {'model.neck.in_channels': 768, 'model.head.type': 'ParityHead', 'custom_imports.imports': ['parity_parts']},
    ),
    'custom imports of child and base': (  # mmengine takes the child's alone; ours adds none
        "_base_ = 'base.py'\ncustom_imports = dict(imports=['parity_parts'])",
        {
            'parity_parts.py': PARTS,
            'base.py': OF_A_PROJECT.replace("['parity_parts']", "['gone']").replace('False', 'True'),
        },
        {'custom_imports': {'imports': ['parity_parts'], 'allow_failed_imports': True}},
    ),
    'names in other letters': ('# größer\n' + TINY + "name = '数据 \\'x\\''", {}, {'name': "数据 'x'"}),
}  # fmt: skip
# the same for Python-style configs, whose bases are modules
STYLED = {
    'bases': (
        'from mmengine.config import read_base\n'
        'with read_base():\n    from .base import *\n    from .parts.number import number\n'
        'model.head.num_classes = number\noptim_wrapper.merge(dict(accumulative_counts=2))',
        {'base.py': PYTHON, 'parts/number.py': 'number = 9'},
        {'model.head.num_classes': 9, 'optim_wrapper.accumulative_counts': 2},
    ),
    'names of torch': (
        'import torch\nfrom torch.optim import SGD\n'
        + PYTHON.replace("'SGD'", 'SGD')
        + 'dtype = torch.float16\nact_cfg = dict(type=torch.nn.GELU)\ndouble = lambda x: 2 * x\n_hidden = 1',
        {},
        {'optim_wrapper.optimizer.type': 'AdamW'},
    ),
    'nothing where a dict comes': (
        PYTHON.replace("neck=dict(type='GlobalAveragePooling')", 'neck=None')
        .replace('=512', '=192')
        .replace(
            'type=ResNet, depth=18, num_stages=4, out_indices=(3,)',
            "type='VisionTransformer', arch='deit-t', img_size=64, out_type='cls_token'",
        ),
        {},
        {'model.neck': {'type': 'GlobalAveragePooling'}},
    ),
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path, one_block_a_stage, maps_found_once):
    monkeypatch.setattr(command, 'FORWARD_SIZE', 64)
    monkeypatch.setenv('PARITY_ROOT', '/from/outside')
    monkeypatch.syspath_prepend(tmp_path)  # as PYTHONPATH would


def laid_out(folder: Path, name: str, text: str, files: dict[str, str]) -> str:
    for file, content in {**files, name: text}.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(folder / name)


def swapped_child(config: str, out: Path, *options: str) -> Config:
    """What the command writes, read again: it must be what the code makes, and run."""
    command.main([config, '--backbone', 'swin_t', '--weights', 'none', '-o', str(out), '--size', '64', *options])
    DefaultScope._instance_dict.clear()
    read = Config.fromfile(str(out))
    wanted = swap_backbone(load_config(config), 'swin_t', weights=None)
    for one, other in ((wanted, read), (read, wanted)):
        assert difference(unscoped(one.to_dict()), unscoped(other.to_dict())) == {}
    assert read.model.backbone.type == SWIN
    forward(build_model(read), (64, 64))
    return read


def check_values(cfg: Config, stated: dict, folder: Path) -> None:
    values = cfg.to_dict()
    for key, value in stated.items():
        node = values
        for part in key.split('.'):
            node = node[part]
        value = value.replace('{folder}', str(folder)) if isinstance(value, str) else value
        node = {key: node[key] for key in value} if isinstance(value, dict) else node
        assert node == (pytest.approx(value) if isinstance(value, float) else value), key


# near relatives of others
RARE = (
    'environment', 'another default scope', 'no keys', 'infinity', 'numbers of numpy', 'no number', 'one scheduler',
    'several test sets', 'custom imports of child and base', 'names in other letters', 'no rules',
    'types with their library and no scope',
)  # fmt: skip


@pytest.mark.parametrize('name', [pytest.param(name, marks=pytest.mark.slow if name in RARE else []) for name in TEXT])
def test_text_configs(tmp_path, capsys, name):
    text, files, stated = TEXT[name]
    child = swapped_child(laid_out(tmp_path, 'mine.py', text, files), tmp_path / 'sub' / 'new.py')
    check_values(child, stated, tmp_path)
    assert 'does not run here' not in capsys.readouterr().out


@pytest.mark.parametrize('name', STYLED)
def test_python_style_configs(tmp_path, capsys, name):
    text, files, stated = STYLED[name]
    child = swapped_child(laid_out(tmp_path, 'mine.py', text, files), tmp_path / 'sub' / 'new.py')
    check_values(child, stated, tmp_path)
    assert 'from ..mine import *' in (tmp_path / 'sub' / 'new.py').read_text()
    assert 'does not run here' not in capsys.readouterr().out


@pytest.mark.parametrize('suffix', ['json', 'yaml'])
def test_configs_that_are_no_python(tmp_path, capsys, suffix):
    text = json.dumps({'_base_': 'base.py', 'model': {'head': {'num_classes': 9}}})  # which is YAML too
    config = laid_out(tmp_path, f'mine.{suffix}', text, {'base.py': TINY})
    child = swapped_child(config, tmp_path / 'new.py')
    assert child.model.head.num_classes == 9


def test_a_child_of_our_own_config(tmp_path, capsys):
    child = swapped_child('mmext_backbones::maxvit_t_in1k.py', tmp_path / 'new.py')
    assert child.model.backbone.arch == 'tiny'
    assert "train with this package's tools" in capsys.readouterr().out


def test_a_swapped_child_is_swapped_again(tmp_path, capsys):
    one = tmp_path / 'one.py'
    config = laid_out(tmp_path, 'mine.py', TINY, {})
    command.main([config, '--backbone', 'maxvit_t', '--weights', 'none', '-o', str(one), '--size', '64'])
    child = swapped_child(str(one), tmp_path / 'two.py')
    assert child.model.head.in_channels == 768


def test_options_with_places_in_lists_apply_to_the_child(tmp_path, capsys):
    text = TINY + "param_scheduler = [dict(type='ConstantLR', end=3), dict(type='CosineAnnealingLR', eta_min=1e-3)]"
    child = swapped_child(laid_out(tmp_path, 'mine.py', text, {}), tmp_path / 'new.py')
    child.merge_from_dict({'param_scheduler.0.end': 5, 'param_scheduler.1.T_max': 7})
    constant, cosine = child.param_scheduler
    assert (constant.end, cosine.T_max, cosine.eta_min) == (5, 7, pytest.approx(1e-5))


def test_runs_of_the_old_backbone_are_not_resumed(tmp_path, capsys):
    config = laid_out(
        tmp_path,
        'mine.py',
        TINY + "resume = True\nwork_dir = 'runs/mine'\nload_from = 'old.pth'\n"
        "activation_checkpointing = ['backbone.layer1', 'head']\nmodel_wrapper_cfg = dict(type='Wrapper')",
        {},
    )
    child = swapped_child(config, tmp_path / 'new.py')
    assert (child.resume, child.load_from) == (False, None)
    assert child.activation_checkpointing == ['head']
    assert child.model.backbone.with_cp
    assert 'find_unused_parameters' not in child.model_wrapper_cfg
    notes = capsys.readouterr().out
    assert 'resume is off' in notes
    assert 'work_dir is still runs/mine' in notes


def test_wrapper_of_the_model_is_told_of_maps_without_reader():
    cfg = load_config('mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py')
    cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', 'find_unused_parameters': False}
    assert swap_backbone(cfg, 'swin_t').model_wrapper_cfg.find_unused_parameters


def test_rules_without_keys_train(tmp_path):
    cfg = swap_backbone(Config.fromfile(laid_out(tmp_path, 'mine.py', TEXT['no keys'][0], {})), 'swin_t', weights=None)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = build_model(cfg, 'meta')
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.0, 0.05}


def test_what_cannot_be_written_is_said(tmp_path):
    text = "rest = __import__('numpy').linspace(0, 1, 3)\n" + LAYER_DECAY.format(keys='dict()')
    config = laid_out(tmp_path, 'mine.py', text, {})
    with pytest.raises(UserError, match='is a ndarray, which cannot be written into another config'):
        command.main([config, '--backbone', 'swin_t', '-o', str(tmp_path / 'new.py'), '--size', '64'])
    assert [path.name for path in tmp_path.glob('*.py')] == ['mine.py']


def test_difference_where_a_dict_takes_the_place_of_nothing():
    assert difference({'a': None, 'b': [1]}, {'a': {'x': 1}, 'b': {'y': 2}, 'c': {'z': 3}}) == {
        'a': {'_delete_': True, 'x': 1},
        'b': {'_delete_': True, 'y': 2},
        'c': {'z': 3},
    }
    assert difference({'a': math.nan, 'b': 1}, {'a': math.nan, 'b': True}) == {'b': True}


def test_written_text_of_odd_values():
    value = {'class': 1, 'ok': math.inf, 'x': [-math.inf, b'a', {1, 2}]}
    assert eval(written(value)) == value
    assert math.isnan(eval(written(math.nan)))
    with pytest.raises(ValueError, match='Path, which cannot be written'):
        written({'a': Path('b')})
