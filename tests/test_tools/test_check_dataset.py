"""tools/check_dataset.py, a training that leaves bad data out, and a handful of the trial."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from mmext_backbones.datasets.shapes import files
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine import train
from mmext_backbones.utils.cli import run_cli

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'dev' / 'trials'))

CONFIG = """
_base_ = [{base!r}]
data = dict(
    type='CustomDataset', data_root={root!r}, metainfo=dict(classes=['circle', 'cross', 'square', 'star', 'triangle']),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')])
workers = dict(batch_size=2, num_workers=2, persistent_workers=False)
train_dataloader = dict(**workers, dataset=dict(_delete_=True, data_prefix='classes/train', **data))
val_dataloader = dict(**workers, dataset=dict(_delete_=True, data_prefix='classes/val', **data))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(num_classes=5),
    backbone=dict(arch=dict(_delete_=True, embed_dims=24, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))),
    head=dict(num_classes=5, in_channels=192, loss=dict(num_classes=5)),
    train_cfg=None)
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=4, val_interval=4)
param_scheduler = []
default_hooks = dict(checkpoint=None)
"""


@pytest.fixture
def config(tmp_path):
    pytest.importorskip('mmpretrain')
    root = make_shapes(tmp_path / 'set', size=32, num_train=10, num_val=5)
    path = tmp_path / 'classifier.py'
    path.write_text(CONFIG.format(base=str(ROOT / 'configs' / 'swin_t_in1k.py'), root=str(root)))
    return path


def check(*args: object) -> int:
    main = runpy.run_path(str(ROOT / 'tools' / 'check_dataset.py'), run_name='check_dataset')['main']
    return run_cli(main, [str(arg) for arg in args])


def test_check_dataset(config, capsys, tmp_path):
    assert check(config) == 0
    screen = capsys.readouterr().out
    assert 'train: 10 samples of CustomDataset' in screen
    assert 'test: the same data as val' in screen
    assert screen.endswith('\nNo errors.\n')

    bad = tmp_path / 'set' / 'classes' / 'train' / 'star' / '000001.png'
    bad.write_bytes(bad.read_bytes()[:90])
    assert check(config, '--split', 'val') == 0
    report = tmp_path / 'report.json'
    for options in ((), ('--workers', '2'), ('--fast',)):
        assert check(config, '--json', report, *options) == 1
        assert str(bad) in capsys.readouterr().out
        (found,) = json.loads(report.read_text())['train']['faults']['truncated']['found']
        assert found['path'] == str(bad)

    assert check(config, '--cfg-options', 'model.head.num_classes=1000') == 1
    assert 'model.head.num_classes is 1000' in capsys.readouterr().out
    assert check(tmp_path / 'nothing.py') == 2
    assert check(config, '--workers', '-1') == 2
    assert check(config, '--cfg-options', 'train_dataloader=None', '--split', 'train') == 2
    assert 'has none of the data asked for: train' in capsys.readouterr().err


def test_check_shapes(config, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(files, 'make_default_shapes', lambda: tmp_path / 'set')
    assert check(config, '--shapes', '--split', 'val') == 0
    assert 'val: 5 samples' in capsys.readouterr().out


@pytest.mark.slow
def test_a_training_leaves_bad_data_out_and_says_so(config, capsys, tmp_path):
    bad = [tmp_path / 'set' / 'classes' / name for name in ('train/star/000001.png', 'val/cross/000000.png')]
    for path in bad:
        path.write_bytes(b'')

    def stop(argv):
        train.train(str(config), work_dir=str(tmp_path / 'stop'))

    assert run_cli(stop, []) == 2
    error = capsys.readouterr().err
    assert any(f'{str(path)!r}: is an empty file' in error for path in bad)
    assert 'Traceback' not in error

    metrics = train.train(str(config), work_dir=str(tmp_path / 'skip'), bad_data='skip', seed=0)
    screen = capsys.readouterr().out
    assert metrics['accuracy/top1'] in (0.0, 25.0, 50.0, 75.0, 100.0)  # of four pictures, where five are listed
    assert 'Left out of the val data, images and annotations: 1' in screen
    (report,) = (tmp_path / 'skip').glob('*/bad_data/report.json')
    told = json.loads(report.read_text())
    assert {fault['path'] for faults in told.values() for fault in faults} <= set(map(str, bad))
    assert told['val'] == [{'kind': 'empty', 'path': str(bad[1]), 'detail': 'is an empty file'}]


@pytest.mark.slow
def test_a_handful_of_the_trial(capfd):
    for library in ('mmdet', 'mmseg', 'mmpretrain'):
        pytest.importorskip(library)
    import broken_data

    result = broken_data.run(6, seed=5, limit=300, cases=[1, 2, 3, 4, 5, 10])
    assert result['wrong'] == []
    assert result['number'] == sum(result['stop'].values()) == sum(result['skip'].values()) == 6
    assert result['trained'] == 1
    assert result['stop']['message'] > 0
    assert result['skip']['finished'] > 0
