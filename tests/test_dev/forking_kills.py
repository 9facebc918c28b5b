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


def test_a_few_kills(kills, tmp_path):
    pytest.importorskip('mmdet')
    assert kills.main(['--kills', '3', '--iterations', '14', '--work-dir', str(tmp_path)]) == 0
    result = json.loads((tmp_path / 'result.json').read_text())
    assert sum(result['kills'].values()) == 3
    assert result['equal'] == result['trainings'] > 0


def test_a_difference_is_seen(kills, tmp_path):
    """The comparison tells checkpoints apart that differ in one bit of one tensor."""
    import torch

    state = {'state_dict': {'a': torch.zeros(3)}, 'optimizer': {'state': {0: torch.ones(2)}}, 'param_schedulers': [1.0]}
    torch.save(state, tmp_path / 'one.pth')
    assert kills.equal(tmp_path / 'one.pth', tmp_path / 'one.pth')
    state['optimizer']['state'][0][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    torch.save(state, tmp_path / 'other.pth')
    assert not kills.equal(tmp_path / 'one.pth', tmp_path / 'other.pth')
