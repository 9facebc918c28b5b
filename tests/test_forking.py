"""Tests that fork their process, each file of them in a fresh one.

A process in which autograd has started threads cannot fork and go on to train (torch: "Autograd-and-Fork"), and what
another test did to this one nobody knows.
"""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


SLOW = ('forking_kills',)  # all of it
FILES = [
    pytest.param(file, id=file.stem, marks=[pytest.mark.slow] if file.stem in SLOW else [])
    for file in sorted(TESTS.glob('*/forking_*.py'))
]


@pytest.mark.parametrize('file', FILES)
def test_in_a_fresh_process(file, request):
    options = ['-q', '-rs', '-p', 'no:cacheprovider', '-p', 'no:xdist', '-m', request.config.getoption('markexpr')]
    command = [sys.executable, '-m', 'pytest', *options, str(file)]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, timeout=900)
    print(done.stdout)  # with what was skipped, and why
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert ' passed' in done.stdout
