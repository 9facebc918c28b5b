"""A few kills through the trial of kills; the full number is measured in docs/reliability.md."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mmext_backbones.engine import setup

TRIALS = Path(__file__).parents[2] / 'dev' / 'trials'


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.setattr(setup, 'make_default_shapes', setup.make_default_shapes)  # the trial sets it
    spec = importlib.util.spec_from_file_location('kills', TRIALS / 'kills.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, 'kills', module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_few_kills(kills, tmp_path):
    pytest.importorskip('mmdet')
    assert kills.main(['--kills', '3', '--iterations', '14', '--work-dir', str(tmp_path)]) == 0
    result = json.loads((tmp_path / 'result.json').read_text())
    assert sum(result['kills'].values()) == 3
    assert result['equal'] == result['trainings'] > 0
