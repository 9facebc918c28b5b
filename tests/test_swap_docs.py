"""The examples of docs/swap.md, as they stand there."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmext_backbones.swap import __main__ as command
from mmext_backbones.swap.checks import build_model, forward

TEXT = (Path(__file__).parents[1] / 'docs' / 'swap.md').read_text()
BLOCKS = re.findall(r'```(python|bash)\n(.*?)```', TEXT, re.DOTALL)
TEXT_CONFIGS = [block for _, block in BLOCKS if block.startswith('_base_')]
CODE = next(block for _, block in BLOCKS if 'swap_backbone(' in block)
PYTHON_STYLE = next(block for _, block in BLOCKS if 'read_base' in block)
COMMANDS = next(block for kind, block in BLOCKS if kind == 'bash').splitlines()
MINE = """
default_scope = 'mmpretrain'
model = dict(
    type={},
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
)
data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False)
"""

pytestmark = pytest.mark.usefixtures('one_block_a_stage', 'maps_found_once')


@pytest.mark.parametrize('block', TEXT_CONFIGS, ids=lambda block: block.splitlines()[0])
def test_by_hand(tmp_path, block):
    path = tmp_path / 'config.py'
    path.write_text(block)
    size = 256 if 'dino' in block else 128  # pixels: DINO chooses 900 queries among its places
    forward(build_model(Config.fromfile(str(path))), (size, size))


def test_python_style_by_hand(tmp_path):
    (tmp_path / 'my_config.py').write_text(
        'from mmpretrain.models import ImageClassifier\n' + MINE.format('ImageClassifier')
    )
    path = tmp_path / 'config.py'
    path.write_text(PYTHON_STYLE)
    forward(build_model(Config.fromfile(str(path))), (64, 64))


def test_in_code(tmp_path, monkeypatch):
    (tmp_path / 'my_config.py').write_text(MINE.format("'ImageClassifier'"))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(CODE, names)
    forward(build_model(names['cfg']), (64, 64))


@pytest.mark.parametrize(
    'line', [pytest.param(line, marks=pytest.mark.slow if 'dino' in line else []) for line in COMMANDS]
)
def test_by_command(tmp_path, monkeypatch, line, capsys):
    (tmp_path / 'my_config.py').write_text(MINE.format("'ImageClassifier'"))
    monkeypatch.chdir(tmp_path)
    if 'dino' not in line:  # which chooses 900 queries among its places
        monkeypatch.setattr(command, 'FORWARD_SIZE', 64)
    _, _, arguments = line.partition('#')[0].replace('-m mmext_backbones.swap', 'swap_backbone.py').partition('.py ')
    command.main([*arguments.split(), '--size', '64'])
    written = [path for path in tmp_path.glob('*.py') if path.name != 'my_config.py']
    assert len(written) == ('--check' not in line)


def test_every_kind_is_there():
    assert len(TEXT_CONFIGS) == 6
    assert len(COMMANDS) == 3
