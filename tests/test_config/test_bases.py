"""Our configs as bases of another project, by name."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

import mmext_backbones  # noqa: F401  (the names are known from then on)
from mmext_backbones.config.files import load_config
from mmext_backbones.utils.errors import UserError

ROOT = Path(__file__).parents[2]
# one of every recipe, whose own files differ
LEAVES = (
    'elsa_swin_t_maskrcnn_1x', 'swin_t_cascade_3x', 'swin_b_upernet_160k_in22k_640', 'maxvit_t_in1k',
    'maxvit_t_cascade_lsj', 'sequencer_s_retinanet_1x', 'sequencer_s_fpn_40k',
)  # fmt: skip


@pytest.mark.parametrize('leaf', LEAVES)
def test_a_leaf_is_a_base_by_name(leaf, tmp_path):
    own = Config.fromfile(ROOT / 'configs' / f'{leaf}.py')
    pytest.importorskip(own.default_scope)
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = 'mmext_backbones::{leaf}.py'\nmodel = dict(backbone=dict(drop_path_rate=0.05))\n")
    cfg = Config.fromfile(child)
    assert cfg.model.backbone.pop('drop_path_rate') == 0.05
    assert cfg.model.backbone.type == own.model.backbone.type
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        theirs, ours = MODELS.build(cfg.model), MODELS.build(own.model)
    assert str(type(theirs)) == str(type(ours))
    assert [p.shape for p in theirs.parameters()] == [p.shape for p in ours.parameters()]
    evaluator = cfg.val_evaluator if isinstance(cfg.val_evaluator, dict) else cfg.val_evaluator[0]
    assert evaluator.get('_scope_', cfg.default_scope) == cfg.default_scope
    assert get_config(f'mmext_backbones::{leaf}.py').default_scope == cfg.default_scope


def test_a_library_of_another_distribution(tmp_path, monkeypatch):
    """mmengine takes ``mmaction`` for a module of mmaction2; a fork of it has the module and another name."""
    configs = tmp_path / 'site' / 'mmaction' / '.mim' / 'configs'
    (configs / '_base_').mkdir(parents=True)
    (configs.parents[1] / '__init__.py').touch()
    (configs.parent / 'model-index.yml').write_text('Import: []\n')
    (configs / '_base_' / 'runtime.py').write_text("default_scope = 'mmaction'\n")
    monkeypatch.syspath_prepend(str(tmp_path / 'site'))
    with pytest.raises(PackageNotFoundError):
        version('mmaction2')
    child = tmp_path / 'child.py'
    child.write_text("_base_ = 'mmaction::_base_/runtime.py'\nmore = 1\n")
    assert load_config(str(child)).to_dict() == {'default_scope': 'mmaction', 'more': 1}
    assert load_config('mmaction::_base_/runtime.py').default_scope == 'mmaction'
    with pytest.raises(
        UserError, match=r"mmaction has no config '_base_/runtme.py'. Did you mean 'mmaction::_base_/ru"
    ):
        load_config('mmaction::_base_/runtme.py')


@pytest.mark.parametrize('name', ['mmext_backbones::no_such_leaf.py', 'mmext_backbones::a::b.py'])
def test_a_name_that_is_none(name, tmp_path):
    child = tmp_path / 'child.py'
    child.write_text(f'_base_ = {name!r}\n')
    with pytest.raises((FileNotFoundError, ValueError)):
        Config.fromfile(child)
