"""Keys of mmdet 2: a config of it is refused with one message, single keys that nothing reads are told."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmext_backbones.config.dialect import OLD, old_keys, refuse_old_config
from mmext_backbones.config.files import load_config
from mmext_backbones.engine.options import RunOptions
from mmext_backbones.engine.setup import prepare
from mmext_backbones.inference.network import read_config
from mmext_backbones.utils.errors import UserError

ROOT = Path(__file__).parents[2]
NEW = {
    'model': {'type': 'M', 'data_preprocessor': {'mean': [1, 2, 3], 'std': [4, 5, 6]}},
    'train_dataloader': {'dataset': {'type': 'D'}},
    'optim_wrapper': {'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', 'lr': 0.1}},
}
WHOLE = """
model = dict(type='FasterRCNN', pretrained=None, backbone=dict(type='SwinTransformer'))
data = dict(samples_per_gpu=2, train=dict(type='CocoDataset', ann_file='a.json', pipeline=[]))
optimizer = dict(type='AdamW', lr=0.0001)
runner = dict(type='EpochBasedRunner', max_epochs=12)
"""


@pytest.mark.parametrize('text', [WHOLE, WHOLE.partition('optimizer')[0], WHOLE.replace('model', 'default_scope')])
def test_a_config_of_mmdet_2(text, tmp_path):
    path = tmp_path / 'old.py'
    path.write_text(text)
    for read in (lambda name: prepare(name, RunOptions()), lambda name: read_config(name, shapes=False, options=None)):
        with pytest.raises(UserError, match=r'(?s)old\.py.* is one of mmdet 2.*\(data.*docs/migration\.md'):
            read(str(path))


@pytest.mark.parametrize('data', [{'train': 1}, {'workers_per_gpu': 2, 'test': {}}, {'train_dataloader': {}}])
def test_data_of_old_configs(data):
    with pytest.raises(UserError):
        refuse_old_config(Config({'model': {}, 'data': data}), 'c.py')
    refuse_old_config(Config({**NEW, 'data': data}), 'c.py')
    assert [key for key, _ in old_keys(Config({**NEW, 'data': data}))] == ['data']
    refuse_old_config(Config({'model': {}, 'data': {'root': 'x'}}), 'c.py')  # a variable of that name


def test_keys_that_nothing_reads():
    cfg = Config({
        **NEW, 'fp16': {'loss_scale': 'dynamic'}, 'optimizer_config': {'grad_clip': {'max_norm': 35}},
        'lr_config': {'policy': 'step'}, 'optimizer': {'type': 'AdamW', 'lr': 0.1}, 'total_epochs': 36,
        'checkpoint_config': {'interval': 1}, 'evaluation': {'interval': 1, 'metric': 'bbox'},
        'custom_hooks': [{'type': 'H', 'interval': 1, 'metric': 'bbox'}],
        'workflow': [('train', 1)], 'resume_from': None, 'cudnn_benchmark': False,
    })  # fmt: skip
    assert [key for key, _ in old_keys(cfg)] == [
        'optimizer', 'optimizer_config', 'fp16', 'lr_config', 'total_epochs', 'evaluation', 'checkpoint_config'
    ]  # fmt: skip


def test_variables_are_no_old_keys():
    variables = {'optimizer': {'type': 'SGD', 'lr': 0.1}, 'img_norm_cfg': {'mean': [1, 2, 3], 'std': [4, 5, 6]}}
    assert old_keys(Config({**NEW, **variables})) == []
    data = {'type': 'D', 'data_root': 'x'}  # as in dict(**data)
    assert old_keys(Config({**NEW, 'data': data})) == []


def test_variables_of_a_base(tmp_path):
    (tmp_path / 'base.py').write_text("optimizer = dict(type='SGD', lr=0.1)\noptim_wrapper = dict(optimizer=optimizer)")
    child = "_base_ = ['base.py']\noptim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW'))\n"
    (tmp_path / 'child.py').write_text(child)
    assert old_keys(load_config(str(tmp_path / 'child.py'))) == []
    (tmp_path / 'own.py').write_text(f"{child}optimizer = dict(type='AdamW', lr=1)")
    assert [key for key, _ in old_keys(load_config(str(tmp_path / 'own.py')))] == ['optimizer']


def test_no_config_of_ours_has_any():
    for path in sorted((ROOT / 'configs').glob('*.py'))[::12]:
        cfg = load_config(str(path))
        refuse_old_config(cfg, str(path))
        assert old_keys(cfg) == []


def test_the_page_has_each_key():
    page = (ROOT / 'docs' / 'migration.md').read_text()
    assert not [key for key in OLD if not re.search(rf'`[^`]*\b{key}\b', page)]
