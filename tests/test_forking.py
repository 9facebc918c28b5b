"""Tests that fork their process, those of each folder in a fresh one.

A process in which autograd has started threads cannot fork and go on to train (torch: "Autograd-and-Fork"), and what
another test did to this one nobody knows.
"""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


SLOW = ('test_dev',)  # all of it
FOLDERS = [
    pytest.param(folder, id=folder.name, marks=[pytest.mark.slow] if folder.name in SLOW else [])
    for folder in sorted({file.parent for file in TESTS.glob('*/forking_*.py')})
]


@pytest.mark.parametrize('folder', FOLDERS)
def test_in_a_fresh_process(folder, request):
    options = ['-q', '-rs', '-p', 'no:cacheprovider', '-p', 'no:xdist', '-m', request.config.getoption('markexpr')]
    command = [sys.executable, '-m', 'pytest', *options, *map(str, sorted(folder.glob('forking_*.py')))]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=900)
    print(done.stdout)  # with what was skipped, and why
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert ' passed' in done.stdout
