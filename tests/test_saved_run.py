"""A config and a checkpoint that version 0.1.0 left in a work dir: later versions test and resume from them.

They are what `tools/train.py --shapes --accumulate 2 --on-nonfinite skip --bad-data skip --bf16 --track tensorboard`
wrote on 2026-11-30 for an ELSA-Swin Mask R-CNN with 4 to 32 channels: every hook, loop and state of ours by its name.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SAVED = ROOT / 'tests/data/saved_run'
RUN = """
import runpy, sys
from mmext_backbones.datasets.shapes.files import make_shapes
make_shapes('made', size=64, num_train=8, num_val=3)
for command in (['train', 'config.py', '--resume', 'iter_4.pth', '--work-dir', 'resumed',
                 '--cfg-options', 'train_cfg.max_iters=6', 'default_hooks.logger.interval=1'],
                ['test', 'config.py', 'iter_4.pth', '--work-dir', 'tested']):
    sys.argv = command
    try:
        runpy.run_path(f'{ROOT}/tools/{command[0]}.py', run_name='__main__')
    except SystemExit as done:
        assert not done.code, done.code
    print('done:', command[0])
"""


def test_resumes_and_tests(tmp_path):
    pytest.importorskip('mmdet')
    for file in SAVED.iterdir():
        shutil.copy(file, tmp_path)
    path = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
    done = subprocess.run(
        [sys.executable, '-c', RUN.replace('{ROOT}', str(ROOT))], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )  # fmt: skip
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-4000:]
    assert 'resumed epoch: 0, iter: 4' in text
    assert re.search(r'Iter\(train\) \[6/6\]', text)
    assert (tmp_path / 'resumed/iter_6.pth').is_file()
    tested = text.partition('done: train')[2]
    assert 'segm_mAP' in tested
    assert 'done: test' in tested
