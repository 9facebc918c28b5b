"""tools/benchmark.py, on images too small to say anything about speed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / 'tools' / 'benchmark.py'


def run(*options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True)


@pytest.mark.parametrize(('family', 'edge'), [('elsa_swin', 32), ('maxvit', 224), ('sequencer', 28)])
def test_times_and_peaks_of_both_sides_are_printed(family, edge):
    pytest.importorskip('timm')
    result = run(family, '--size', str(edge), str(edge), '--rounds', '1')
    assert result.returncode == 0, result.stderr
    error = float(re.search(r'largest relative difference of the outputs: (\S+)', result.stdout).group(1))
    assert error <= 2e-5
    rows = re.findall(r'^(forward|forward\+backward|  peak memory) .*?([\d.]+) x$', result.stdout, re.MULTILINE)
    assert [name.strip() for name, _ in rows] == ['forward', 'peak memory', 'forward+backward', 'peak memory']


def test_unknown_arch_is_named():
    result = run('maxvit', '--arch', 'medium')
    assert result.returncode == 2
    assert '--arch medium: expected one of tiny, small, base, large, xlarge' in result.stderr
