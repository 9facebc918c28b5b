"""dev/trials/broken_files.py: a handful of its cases, and that it would notice what it looks for."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRIAL = ROOT / 'dev' / 'trials' / 'broken_files.py'


@pytest.fixture(scope='module')
def trial():
    spec = importlib.util.spec_from_file_location('broken_files', TRIAL)
    module = sys.modules['broken_files'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TRIAL.parent))


@pytest.mark.slow
def test_a_handful(tmp_path):
    """In a process of its own: cases are forked, and this one may have autograd's threads."""
    pytest.importorskip('mmpretrain')
    out = tmp_path / 'results.json'
    result = subprocess.run(
        [sys.executable, str(TRIAL), '--cases', '6', '--seed', '7', '-o', str(out)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    results = json.loads(out.read_text())['results']
    assert len(results) == 6
    assert all(each['message'] for each in results if each['end'] == 'refused')
    assert any(each['end'] == 'refused' for each in results)


def test_cases_follow_from_the_seed(trial):
    assert trial.cases(40, 3) == trial.cases(40, 3)
    assert trial.cases(40, 3) != trial.cases(40, 4)
    pairs = {(case.consumer, case.fault) for case in trial.cases(2000, 0)}
    assert {(consumer, fault) for consumer in trial.OF_CHECKPOINTS for fault in trial.FAULTS} <= pairs


def test_what_is_wrong_is_seen(trial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    case = trial.Case(0, 'test', 'NaN')
    fault = trial.FAULTS['NaN']

    def verdict(ended='returned', code=2, message='Error: broken is bad', before=(), after=()):
        return trial.verdict(case, fault, ended, code, message, dict(before), dict(after), ['broken'])

    assert verdict() == 'refused'
    assert verdict(code=0) == 'took what it should not'
    assert verdict(ended='traceback') == 'traceback'
    assert verdict(message='Traceback (most recent call last)\nError: broken') == 'traceback'
    assert verdict(message='Error: something') == 'named nothing'
    assert verdict(message='') == 'ended with 2 and no message'
    assert verdict(before={'x': '1'}, after={'x': '2'}) == 'overwrote a file'
    assert verdict(code=0, before={'case/x': '1'}) == 'overwrote a file'
    (tmp_path / 'was_run').touch()
    assert verdict() == 'ran what a pickle says'


def test_every_pickle_of_code_would_run_if_it_were_read(trial, tmp_path):
    """Otherwise the trial proves nothing."""
    import random

    import torch

    good = {'state_dict': {'backbone.a': torch.ones(2)}, 'meta': {}}
    for index, (name, fault) in enumerate(trial.FAULTS.items()):
        if name.startswith('code: '):
            trial.Marker.path = str(tmp_path / f'was_run_{index}')
            path = tmp_path / f'{index}.pth'
            fault.apply(random.Random(0), good, path)
            try:
                torch.load(path, weights_only=False)
            except Exception:
                import pickle

                pickle.loads(path.read_bytes())
            assert Path(trial.Marker.path).exists(), name
