"""What a run prints at its end."""

import json
import shlex
import time

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmext_backbones.engine.evaluation.results import describe
from mmext_backbones.engine.options import TestOptions, TrainOptions
from mmext_backbones.engine.summary import metric_table, say_summary


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The config of a training that has ended in a folder whose name has a space."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my data').mkdir()
    (tmp_path / 'my data' / 'iter_3.pth').touch()
    (tmp_path / 'my data' / 'last_checkpoint').write_text('my data/iter_3.pth')
    cfg = Config({'work_dir': 'my data'})
    object.__setattr__(cfg, '_filename', 'configs/my config.py')
    return cfg


def last_command(capsys) -> list[str]:
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('test it')]
    return shlex.split(line.removeprefix('test it'))


def test_the_command_can_be_typed(run, capsys):
    say_summary(run, {}, time.time() - 60, 'configs/my config.py', TrainOptions(shapes=True))
    assert last_command(capsys) == ['python', 'tools/test.py', 'configs/my config.py', 'my data/iter_3.pth', '--shapes']


def test_the_command_tests_what_was_trained(run, tmp_path, capsys):
    """The config in the work dir has the options; without it they are repeated."""
    asked = TrainOptions(cfg_options={'model.backbone.a': [1, 'x y']})
    say_summary(run, {}, time.time() - 60, 'configs/my config.py', asked)
    words = last_command(capsys)
    assert words[2:] == ['configs/my config.py', 'my data/iter_3.pth', '--cfg-options', "model.backbone.a=[1, 'x y']"]
    (tmp_path / 'my data' / 'my config.py').touch()
    for options in (asked, TrainOptions(bf16=True), TrainOptions(shapes=True, cfg_options={'a': 1})):
        say_summary(run, {}, time.time() - 60, 'configs/my config.py', options)
        assert last_command(capsys)[2:] == ['my data/my config.py', 'my data/iter_3.pth']


def test_pictures_that_were_not_drawn_are_not_named(run, tmp_path, capsys):
    for there in (False, True):
        say_summary(run, {}, time.time() + 60, 'a.py', TestOptions(show_dir='shown'))
        assert ('pictures     shown' in capsys.readouterr().out) == there
        (tmp_path / 'shown').mkdir(exist_ok=True)


@pytest.mark.parametrize('content', [b'', b'\xff\0', b's3://bucket/iter_3.pth'])
def test_odd_notes_of_the_last_checkpoint(content, run, tmp_path, capsys):
    (tmp_path / 'my data' / 'last_checkpoint').write_bytes(content)
    say_summary(run, {'acc': 0.5}, time.time() - 60, 'a.py', TrainOptions(), per_class={'bbox': 5})
    out = capsys.readouterr().out
    assert ('s3://bucket/iter_3.pth' in out) == content.startswith(b's3')
    assert 'acc' in out
    assert 'took' in out


# as evaluators of the libraries return them: by phrase and size, a confusion matrix, a text
METRICS = {
    'coco/bbox_mAP': 0.5,
    'flickr30k': {'bbox': {1: 0.25, 5: np.float32(0.5)}},
    'confusion_matrix/result': torch.tensor([[1, 2], [3, 4]]),
    'name': 'a text\x1b[0m',
    'acc': torch.tensor(0.75),
    'bleu': None,
}


def test_metrics_of_any_kind_are_shown():
    lines = metric_table(METRICS)
    assert lines[1].split() == ['box', '0.500']
    assert [line.split() for line in lines[2:]] == [
        ['flickr30k', 'bbox', '1', '0.250'],
        ['flickr30k', 'bbox', '5', '0.500'],
        ['result', '2', 'x', '2', 'numbers'],
        ['name', 'a', r'text\x1b[0m'],
        ['acc', '0.750'],
        ['bleu', 'None'],
    ]


def test_metrics_of_any_kind_are_written():
    cfg = Config({'test_dataloader': {'dataset': {'type': 'CocoDataset'}}})
    metrics = {**METRICS, 'coco/segm_mAP': -1, 'text_mAP': torch.zeros(2)}
    record = describe(cfg, 'a.py', metrics=metrics, per_class={}, num_images=1)
    assert json.loads(json.dumps(record['metrics'], allow_nan=False)) == {
        'coco/bbox_mAP': 0.5,
        'flickr30k': {'bbox': {'1': 0.25, '5': 0.5}},
        'confusion_matrix/result': [[1, 2], [3, 4]],
        'name': 'a text\x1b[0m',
        'acc': 0.75,
        'bleu': None,
        'coco/segm_mAP': None,
        'text_mAP': [0.0, 0.0],
    }
