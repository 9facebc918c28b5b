"""dev/components: every component has a small run, a sample of them is run, and sides are told apart."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from dev.components import report
from dev.components.recipes import NOT_DRAWN, recipe
from dev.components.running import compare
from dev.components.walk import Component, walk

ROOT = Path(__file__).parents[2]


def test_every_component_has_a_run_or_a_reason(tmp_path):
    """Also those that a later version of a library adds: this is where they are missed."""
    components = walk()
    assert {each.library for each in components} == {'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'}
    assert len({each.key for each in components}) == len(components) > 200
    for component in components:
        if component.name in NOT_DRAWN:
            continue
        cfg = recipe(component, tmp_path)
        assert f"'{component.name}'" in repr(cfg) or f"'{component.short}'" in repr(cfg), component.key
    assert NOT_DRAWN.keys() <= {component.name for component in components}


@pytest.mark.slow
def test_a_sample_by_both_runners(tmp_path):
    """In a process of its own: it forks, and sets what the whole process has."""
    results = tmp_path / 'results.jsonl'
    names = ['mmpretrain.CustomDataset', 'NPUProfilerHook', 'mmdet.DumpProposals', 'mmengine.EarlyStoppingHook',
             'mmpretrain.ConfusionMatrix', 'mmdet.TrackImgSampler', 'mmengine.MultiDatasetsEvaluator']  # fmt: skip
    command = [sys.executable, '-m', 'dev.components', '--results', results, '--only', *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {row['key']: row['outcome'] for row in report.read(results).values()}
    assert outcomes == {
        'DATASETS/mmpretrain.CustomDataset': 'equal',
        'DATA_SAMPLERS/mmdet.TrackImgSampler': 'equal',
        'EVALUATOR/mmengine.MultiDatasetsEvaluator': 'equal',
        'HOOKS/mmengine.EarlyStoppingHook': 'equal',
        'HOOKS/mmengine.NPUProfilerHook': 'both fail',
        'METRICS/mmdet.DumpProposals': 'equal',
        'METRICS/mmpretrain.ConfusionMatrix': 'equal',
    }


# --------------------------------------------------------------------------------------------------------------------
# Results made by hand


def side(exit=0, error=None, events=(['loss', 0, {'loss': '0.5'}, '1.0'], ['test', {'acc': '1.0'}]), files=None):
    return {
        'exit': exit,
        'error': error,
        'events': list(events),
        'files': files or {'work/epoch_2.pth': ''},
        'seconds': 1,
    }


def test_sides_that_agree():
    more = {'work/epoch_2.pth': '', 'work/curves.png': ''}
    assert compare(side(), side(files=more)) == ('equal', '')  # ours may leave more
    assert compare(side(1, 'ImportError: no lvis'), side(2, 'UserError: lvis'))[0] == 'both fail'
    assert compare(side(None, 'not done after 60 s'), side(None, 'not done after 60 s'))[0] == 'both fail'


@pytest.mark.parametrize(
    ('other', 'told'),
    [
        (
            side(events=[['loss', 0, {'loss': '0.5000000000000001'}, '1.0'], ['test', {'acc': '1.0'}]]),
            '0.5000000000000001',
        ),
        (side(events=[['loss', 0, {'loss': '0.5'}, '1.0']]), '2 losses and metrics, ours has 1'),
        (side(files={'work/epoch_1.pth': ''}), 'epoch_2.pth'),
        (side(2, 'BadDataError: no'), 'only ours fails: BadDataError: no'),
        (side(None, 'not done after 60 s'), 'only ours fails: not done'),
    ],
)
def test_sides_that_differ(other, told):
    outcome, reason = compare(side(), other)
    assert outcome == 'differs'
    assert told in reason


def test_where_only_mmengine_fails():
    assert compare(side(1, 'KeyError: x'), side()) == ('differs', 'only mmengine fails: KeyError: x')


def test_page_counts_and_lists(tmp_path):
    components = [Component('HOOKS', 'mmdet', f'mmdet.{name}', object, True) for name in ('A', 'B', 'C')]
    row = {'library': 'mmdet', 'as_installed': True, 'date': '2026-01-02', 'seconds': [1.0, 2.0], 'reason': ''}
    rows = {'HOOKS/mmdet.A': {**row, 'key': 'HOOKS/mmdet.A', 'outcome': 'equal'}}
    rows['HOOKS/mmdet.B'] = {**row, 'key': 'HOOKS/mmdet.B', 'outcome': 'differs', 'reason': 'a | b'}
    report.keep(tmp_path / 'rows.jsonl', rows)
    assert [json.loads(line)['key'] for line in (tmp_path / 'rows.jsonl').read_text().splitlines()] == sorted(rows)
    text = report.page(report.read(tmp_path / 'rows.jsonl'), components, {'torch': '2'})
    assert '**Not all of them: 2 of 3 have a result.**' in text
    assert '| HOOKS | 1 | 0 | 1 | 0 | 2 |' in text
    assert '| `HOOKS/mmdet.B` | a \\| b |' in text
    assert '| `HOOKS/mmdet.A` | equal | 1.0 | 2.0 | 2.00 |' in text
    assert 'median ratio of times is 2.00' in text
