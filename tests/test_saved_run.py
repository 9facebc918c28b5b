"""A config and a checkpoint that version 0.1.0 left in a work dir: later versions test and resume from them.

They are what `tools/train.py --shapes --accumulate 2 --on-nonfinite skip --bad-data skip --bf16 --track tensorboard`
wrote on 2026-11-30 for an ELSA-Swin Mask R-CNN with 4 to 32 channels: every hook, loop and state of ours by its name.
"""

import re
import shutil
from pathlib import Path

import pytest

from mmext_backbones.datasets.shapes.files import make_shapes

SAVED = Path(__file__).parent / 'data/saved_run'


def test_resumes_and_tests(tmp_path, monkeypatch, run_tool):
    pytest.importorskip('mmdet')
    for file in SAVED.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    make_shapes('made', size=64, num_train=8, num_val=3)
    options = ('--cfg-options', 'train_cfg.max_iters=6', 'default_hooks.logger.interval=1')
    trained = run_tool('train', 'config.py', '--resume', 'iter_4.pth', '--work-dir', 'resumed', *options)
    text = trained.stdout + trained.stderr
    assert trained.returncode == 0, text[-4000:]
    assert 'resumed epoch: 0, iter: 4' in text
    assert re.search(r'Iter\(train\) \[6/6\]', text)
    assert (tmp_path / 'resumed/iter_6.pth').is_file()
    tested = run_tool('test', 'config.py', 'iter_4.pth', '--work-dir', 'tested')
    assert tested.returncode == 0, tested.stderr
    assert 'segm_mAP' in tested.stdout
