"""What a config reads is never written over: itself, its bases, annotations, weights, pictures of any split."""

import os
from pathlib import Path

import pytest
from mmengine.config import Config

from mmext_backbones.config.inputs import config_files, keep_config_inputs, written_by_hand
from mmext_backbones.utils.errors import UserError

INPUTS = (
    'config.py', 'base.py', 'data/train.json', 'elsewhere/val.json', 'data/train/a.png', 'data/maps/a.png',
    'weights.pth', 'start.pth',
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (
        'data/train/a.png',
        'data/maps/a.png',
        'data/train.json',
        'elsewhere/val.json',
        'weights.pth',
        'start.pth',
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text('data')
    Path('base.py').write_text("val_evaluator = dict(ann_file='elsewhere/val.json')\n")
    Path('config.py').write_text(
        "_base_ = ['base.py']\n"
        "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='start.pth')))\n"
        "train_dataloader = dict(dataset=dict(type='RepeatDataset', dataset=dict(\n"
        "    data_root='data', ann_file='train.json', data_prefix=dict(img='train', seg='maps'))))\n"
        "load_from = 'weights.pth'\n"
    )
    return tmp_path


@pytest.mark.parametrize('target', INPUTS)
def test_inputs_stay_under_each_of_their_names(folder, target):
    cfg = Config.fromfile('config.py')
    Path('link').symlink_to(target)
    Path('folder').symlink_to(Path(target).parent.absolute())
    for name in (target, os.path.abspath(target), 'link', f'folder/{Path(target).name}', f'data/../{target}'):
        if name == 'link' and target.endswith('.png'):
            continue  # the name of a picture has to be one
        with pytest.raises(UserError, match='--out') as error:
            keep_config_inputs(f'--out {name}', [name], cfg)
        assert 'Name another place' in str(error.value)


def test_new_files_and_what_is_not_read_may_be_written(folder):
    cfg = Config.fromfile('config.py')
    Path('before.json').write_text('a report')
    keep_config_inputs('--out', ['data/train/new.png', 'before.json', 'new/place.json'], cfg)
    with pytest.raises(UserError):
        keep_config_inputs('--out', ['before.json'], cfg, [None, 'before.json'])


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('child.py', "_base_ = ['base.py', 'mmdet::_base_/default_runtime.py']\n"),
        ('child.py', "_base_ = './base.py'\n"),
        ('child.py', 'from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'),
        ('inner/child.py', 'from mmengine.config import read_base\nwith read_base():\n    from ..base import *\n'),
        ('child.yaml', '_base_: base.py\n'),
        ('child.json', '{"_base_": ["base.py"]}'),
    ],
)
def test_bases_by_every_way_to_name_them(folder, name, text):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)
    cfg = Config()
    object.__setattr__(cfg, '_filename', name)
    assert config_files(cfg) == [os.path.abspath(name), os.path.abspath('base.py')]


def test_a_dump_takes_no_place_of_what_a_person_wrote(folder):
    cfg = Config.fromfile('config.py')
    assert written_by_hand(cfg, '.') == Path('config.py')
    assert written_by_hand(cfg, 'elsewhere') is None
    cfg.dump('elsewhere/config.py')
    assert written_by_hand(cfg, 'elsewhere') is None, 'a dump of another run is no input'
    assert written_by_hand(Config.fromfile('elsewhere/config.py'), 'elsewhere') is None, 'what was dumped may be again'
    Path('elsewhere/base.py').write_text("_base_ = ['../config.py']\n")
    Path('last').mkdir()
    Path('last/base.py').write_text("_base_ = ['../elsewhere/base.py']\n")
    assert written_by_hand(Config.fromfile('last/base.py'), 'elsewhere') == Path('elsewhere/base.py')
