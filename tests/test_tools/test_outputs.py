"""What a tool is told to write takes no place of what it reads; more by dev/trials/outputs.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRIAL = ROOT / 'dev' / 'trials' / 'outputs.py'


@pytest.mark.parametrize(
    ('tool', 'arguments', 'target'),
    [
        ('check_dataset', ('config.py', '--json'), 'train.json'),
        ('check_dataset', ('config.py', '--json'), 'config.py'),
        ('check_dataset', ('config.py', '--json'), 'pictures'),
        ('visualize', ('data', 'config.py', '--out'), 'pictures/a.png'),
        ('visualize', ('predictions', 'config.py', 'weights.pth', '--out'), 'pictures/a.png'),
        ('swap_backbone', ('config.py', '--backbone', 'swin_t', '--force', '-o'), 'base.py'),
        ('swap_backbone', ('config.py', '--backbone', 'swin_t', '--force', '-o'), 'config.py'),
    ],
)
def test_inputs_stay(run_tool, tmp_path, monkeypatch, tool, arguments, target):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    Path('pictures').mkdir()
    for name in ('train.json', 'pictures/a.png', 'weights.pth'):
        Path(name).write_text('as it was')
    Path('base.py').write_text("_base_ = 'mmext_backbones::swin_t_maskrcnn_1x.py'\n")
    Path('config.py').write_text(
        "_base_ = ['base.py']\n"
        "train_dataloader = dict(dataset=dict(data_root='', ann_file='train.json', data_prefix=dict(img='pictures')))\n"
    )
    before = Path(target).is_file() and Path(target).read_text()
    result = run_tool(tool, *arguments, target)
    assert result.returncode == 2
    assert 'ame another' in result.stderr or 'Name a file' in result.stderr
    assert target in result.stderr
    assert not before or Path(target).read_text() == before


@pytest.mark.slow
def test_a_handful_of_the_trial(tmp_path):
    """In a process of its own: cases are forked, and this one may have autograd's threads."""
    pytest.importorskip('mmdet')
    out = tmp_path / 'results.json'
    result = subprocess.run(
        [sys.executable, str(TRIAL), '--cases', '6', '-o', str(out)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert len(json.loads(out.read_text())['results']) == 6
