"""The config inside a saved batch: what it names is built only where it is a registered part of a model."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmext_backbones.engine.nonfinite.replay import replay
from mmext_backbones.engine.nonfinite.saved_config import checked_model, scope_of
from mmext_backbones.engine.resume.random_state import random_state
from mmext_backbones.utils.errors import UserError


@MODELS.register_module(force=True)
class ToyOfSavedConfigs(BaseModel):
    """A linear layer, and whatever else a config says."""

    def __init__(self, part: object = None, **options: object) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.part = MODELS.build(part) if part else None
        self.options = options

    def forward(self, inputs, data_samples=None, mode='loss'):
        return {'loss': self.layer(torch.stack(inputs)).sum()}


def save(folder: Path, config: object, **changes: object) -> str:
    state = ToyOfSavedConfigs().state_dict()
    torch.save({'state_dict': state, 'meta': {'iter': 1}}, folder / 'weights.pth')
    batch = {'iteration': 2, 'fault': 'loss', 'losses': {}, 'images': [], 'random_state': random_state()}
    batch |= {'data_batch': {'inputs': [torch.ones(2)], 'data_samples': None}, 'weights': 'weights.pth'}
    batch |= {'device': 'cpu', 'amp': False, 'amp_dtype': None, 'loss_scale': 1.0, 'config': config}
    torch.save({**batch, **changes}, folder / 'iter_2.pth')
    return str(folder / 'iter_2.pth')


TOY = {'type': 'ToyOfSavedConfigs'}


def test_a_registered_model_is_run(tmp_path):
    first = {'init_cfg': {'type': 'Pretrained', 'checkpoint': 'absent.pth'}}
    values = {'size': np.int64(3), 'mode': 'a text, of words', 'dtype': torch.float32, 'weights': np.ones(2)}
    found = replay(save(tmp_path, {'model': {**TOY, **first, **values}}))
    assert 'loss' in found.losses


EVIL = {
    'a function': lambda mark: {'model': {'type': 'os.system', 'command': f'touch {mark}'}},
    'a function of a scope': lambda mark: {'model': {'type': 'mmengine.os.system', 'command': f'touch {mark}'}},
    'another function': lambda mark: {'model': {'type': 'subprocess.getoutput', 'cmd': f'touch {mark}'}},
    'a class that is not registered': lambda mark: {'model': {'type': 'subprocess.Popen', 'args': ['touch', mark]}},
    'eval': lambda mark: {'model': {'type': 'builtins.eval', 'source': f'open({mark!r}, "w")'}},
    'a part': lambda mark: {'model': {**TOY, 'part': {'type': 'os.system', 'command': f'touch {mark}'}}},
    'deep inside': lambda mark: {'model': {**TOY, 'x': [({'y': [{'type': 'os.system', 'command': 'true'}]},)]}},
    'a preprocessor': lambda mark: {'model': TOY, 'data_preprocessor': {'type': 'os.system', 'command': 'true'}},
    'a module': lambda mark: {'model': {'type': 'evil_module'}},
    'a function of a module': lambda mark: {'model': {'type': 'evil_module.run'}},
    'a function of a module, as a scope': lambda mark: {'model': {'type': 'evil_module.Swin'}},
    'a module as the scope of a part': lambda mark: {'model': {**TOY, '_scope_': 'evil_module'}},
    'a module as the default scope': lambda mark: {'default_scope': 'evil_module', 'model': TOY},
    'a type that is no text': lambda mark: {'model': {'type': torch.Size([1])}},
    'a path in bytes': lambda mark: {'model': {**TOY, 'file': b'x.pkl'}},
    'a class': lambda mark: {'model': {**TOY, 'cls': np.ndarray}},
    'an import': lambda mark: {'model': {**TOY, 'act': 'os.system'}},
    'a registered hook': lambda mark: {'model': {'type': 'CheckpointHook'}},
    'a registered runner': lambda mark: {'model': {'type': 'Runner'}},
    'a config': lambda mark: {'model': {**TOY, 'teacher_config': 'evil_module.py'}},
    'a pickle': lambda mark: {'model': {**TOY, 'class_weight': 'http://example.org/weights.pkl'}},
    'a pickle of that folder': lambda mark: {'model': {**TOY, 'class_weight': 'evil_file'}},
    'code of a hub': lambda mark: {'model': {**TOY, 'trust_remote_code': True}},
    'a text that is evaluated': lambda mark: {'model': {**TOY, 'warp_mode': f'open({mark!r}, "w")'}},
    'a suppression that is evaluated': lambda mark: {'model': {**TOY, 'test_cfg': {'nms': {'type': 'os.abort()'}}}},
    'no model': lambda mark: {'model': 'os.system'},
    'no config': lambda mark: 'model = dict()',
}


@pytest.mark.parametrize('name', EVIL)
def test_nothing_that_a_config_names_is_run(name, tmp_path, monkeypatch):
    mark = tmp_path / 'RUN'
    (tmp_path / 'evil_module.py').write_text(f'open({str(mark)!r}, "w")\n')
    (tmp_path / 'evil_file').write_text('')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, EVIL[name](str(mark)))
    with pytest.raises(UserError, match='the config of the saved batch'):
        replay(path)
    assert not mark.exists()
    assert 'evil_module' not in sys.modules


def test_a_config_without_end(tmp_path):
    circle = {**TOY}
    circle['part'] = circle
    many = [0]
    for _ in range(40):  # 2 ** 40 values, in a small file
        many = [many, many]
    for model in (circle, {**TOY, 'x': many}):
        with pytest.raises(UserError, match='nested too deeply, or too large'):
            replay(save(tmp_path, {'model': model}))


def test_a_batch_by_another_name(tmp_path):
    """Newer versions of torch choose their reader by the suffix."""
    path = Path(save(tmp_path, {'model': TOY}))
    other = path.rename(path.with_suffix('.safetensors'))
    assert replay(str(other)).iteration == 2
    other.write_bytes(b'no zip')
    with pytest.raises(UserError):
        replay(str(other))


@pytest.mark.parametrize(
    'changes',
    [
        {'weights': '/etc/passwd'},
        {'weights': '../weights.pth'},
        {'weights': 3},
        {'iteration': 'x'},
        {'random_state': {}},
        {'random_state': {**random_state(), 'torch': 3}},
        {'amp_dtype': 'os'},
        {'device': 'cuda:99999'},
        {'device': None},
        {'loss_scale': 'x'},
    ],
    ids=lambda changes: str(changes)[:40],
)
def test_fields_of_another_kind(changes, tmp_path):
    with pytest.raises(UserError, match='no saved batch as a training leaves it'):
        replay(save(tmp_path, {'model': TOY}, **changes))


@pytest.mark.parametrize('spelling', ['short', 'scope', 'full'])
def test_parts_of_the_toolboxes_may_be_named(spelling):
    pytest.importorskip('mmdet')
    prefix = {'short': '', 'scope': 'mmdet.', 'full': 'mmdet.models.'}[spelling]
    assigner = {'type': {'full': 'mmdet.models.task_modules.'}.get(spelling, prefix) + 'MaxIoUAssigner'}
    roi = {'roi_layer': {'type': 'RoIAlign', 'output_size': 7}, 'nms': {'type': 'soft_nms', 'iou_threshold': 0.7}}
    model = {'type': f'{prefix}MaskRCNN', 'backbone': {'type': 'mmext_backbones.SwinTransformer', 'pretrained': 'a/b'}}
    model |= {'x': [assigner, roi], 'norm_cfg': {'type': 'BN'}, 'adapt_cfg': {'type': 'offset'}}
    model |= {'neck': {'type': 'FPN', '_scope_': 'mmdet'} if spelling == 'short' else None}
    model |= {'arch': '768/32', 'tokens': ['[SEP]'], 'init_cfg': [{'checkpoint': 'https://example.org/a.pth'}]}
    cfg = {'default_scope': 'mmdet', 'model': model, 'data_preprocessor': {'type': f'{prefix}DetDataPreprocessor'}}
    with DefaultScope.overwrite_default_scope(scope_of(cfg)):
        checked = checked_model(cfg)
    assert 'init_cfg' not in checked
    assert checked['backbone'] == {'type': 'mmext_backbones.SwinTransformer'}
    assert checked['data_preprocessor'] == cfg['data_preprocessor']
    assert checked['x'] == model['x']
