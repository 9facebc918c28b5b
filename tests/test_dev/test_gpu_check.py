"""The script for the first minutes on a GPU, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dev.gpu_check import page
from dev.gpu_check.command import main, parser, summary
from dev.gpu_check.operators import cases, check, tensors_of
from dev.gpu_check.steps import Steps
from dev.gpu_check.times import CONVOLUTIONS, _filters, time_operator
from mmext_backbones.utils.errors import UserError
from tests.torch_features import needs_interpreter

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')


@pytest.fixture
def steps(tmp_path):
    return Steps(100, tmp_path / 'found.json', {'dry': True})


def found(steps):
    return json.loads(steps.path.read_text())


def test_steps_keep_rows_and_errors_after_each(steps):
    steps.run('checks', 'a', lambda: {'right': True}, 0)
    assert found(steps)['checks'] == [{'right': True}]
    steps.run('checks', 'b', lambda: 1 / 0, 0)
    steps.run('checks', 'c', lambda: [{'right': True}, {'right': False}], 0)
    results = found(steps)
    assert [row['right'] for row in results['checks']] == [True, True, False]
    assert results['errors'][0]['step'] == 'checks: b'
    assert 'ZeroDivisionError' in results['errors'][0]['error']
    assert [summary(results)['right'], len(summary(results)['wrong'])] == [2, 1]


def test_what_does_not_fit_the_budget_is_left_out(steps, monkeypatch):
    clock = iter(range(0, 10000, 30))
    monkeypatch.setattr('dev.gpu_check.steps.time.monotonic', lambda: steps.began + next(clock))
    steps.run('networks', 'long', lambda: {}, 200)
    steps.run('networks', 'first', lambda: {}, 10)  # takes 30 s of the clock
    steps.run('networks', 'second', lambda: {}, 0)  # as long again does not fit
    assert steps.results['left_out'] == ['networks: long', 'networks: second']
    assert len(steps.results['networks']) == 1


def test_a_step_that_does_not_end_is_ended(tmp_path):
    path = tmp_path / 'found.json'
    code = f"""
import sys, time
from pathlib import Path
from dev.gpu_check.steps import Steps
steps = Steps(0.5, Path({str(path)!r}), {{}})
steps.end_in_time(0)
steps.run('checks', 'endless', lambda: time.sleep(60), 0)
"""
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, timeout=50).returncode == 3
    assert json.loads(path.read_text())['left_out'] == [
        'checks: endless, and what follows: the time was up in the midst of it'
    ]


@pytest.mark.parametrize('dtype', ['fp32', 'fp16', 'bf16'])
def test_every_operator_agrees_with_its_formula(dtype):
    for case in cases(dry=True):
        [row] = check(case._replace(forms=('torch',)), dtype, CPU)
        assert row['right'], row


def test_a_wrong_operator_is_found():
    case = next(case for case in cases(dry=True) if case.name == 'product_conv')

    def wrong(form, q, *rest):
        return case.run(form, q.detach() if form == 'torch' else q, *rest)  # right, but for the gradient of q

    [row] = check(case._replace(run=wrong), 'fp32', CPU)
    assert not row['right']
    assert [error > row['allowed'] for error in row['errors']] == [False, True, False, False, False]

    def failing(form, *tensors):
        if form == 'torch':
            raise RuntimeError('no such kernel')
        return case.run(form, *tensors)

    [row] = check(case._replace(run=failing), 'fp32', CPU)
    assert not row['right']
    assert 'no such kernel' in row['error']


def test_what_a_gpu_is_refused_is_not_wrong():
    case = next(case for case in cases(dry=True) if case.name == 'elsa')
    rows = check(case._replace(why_not=lambda device, dtype: 'too old'), 'bf16', CPU)
    assert [row['right'] for row in rows] == [None, True]
    assert rows[0]['refused'] == 'too old'
    told = summary({'checks': rows, 'errors': [], 'left_out': []})
    assert [told['right'], len(told['wrong']), len(told['refused'])] == [1, 0, 1]


def test_the_three_filter_convolutions_are_one():
    tensors = tensors_of(_filters((2, 5, 6), 8), torch.float32, CPU)
    first, *others = [function(*tensors) for function in CONVOLUTIONS.values()]
    for other in others:
        torch.testing.assert_close(other, first)


def test_a_form_that_does_not_run_leaves_the_times_of_the_others():
    def failing(*tensors):
        raise RuntimeError('not here')

    sides = {'one': lambda q, *_: q * 2, 'two': failing}
    rows = time_operator('toy', sides, _filters((1, 3, 3), 4), 'fp32', CPU, 2, 0)
    assert [row['mode'] for row in rows] == ['forward', 'forward+backward']
    for row in rows:
        assert list(row['ms']) == ['one']
        assert 'not here' in row['errors']['two']


RESULTS = {
    'dry': False,
    'seconds': 400.2,
    'machine': {'torch': '2.11.0', 'accelerator': 'Toy GPU', 'capability': '9.0', 'packages': {'triton': '3.6.0'}},
    'checks': [
        {'operator': 'elsa', 'form': 'gpu', 'dtype': 'fp16', 'right': True, 'errors': [0.001], 'allowed': 0.004},
        {'operator': 'grid', 'form': 'gpu', 'dtype': 'fp32', 'right': False, 'errors': [0, 0.5], 'allowed': 1e-4},
    ],
    'operators': [
        {'name': 'elsa', 'dtype': 'fp16', 'mode': 'forward', 'ms': {'gpu': [1.25, 1, 2]}, 'errors': {'torch': 'no'}}
    ],
    'networks': [
        {
            'network': 'swin',
            'batch': 2,
            'size': [8, 9],
            'dtype': 'bf16',
            'mode': 'forward',
            'ms': {'ours': [12.5, 1, 2]},
            'peak_mib': {'ours': 300.4},
            'errors': {},
        }
    ],
    'left_out': ['compiled networks: swin'],
    'errors': [{'step': 'a', 'error': 'b', 'traceback': ''}],
}


def test_the_page_has_what_was_found(tmp_path, monkeypatch):
    monkeypatch.setattr(page, 'PAGE', tmp_path / 'page.md')
    page.PAGE.write_text(f'before\n{page.BEGIN}\nold\n{page.END}\nafter\n')
    path = tmp_path / 'gpu.json'
    path.write_text(json.dumps(RESULTS))
    assert main(['--page', str(path)]) == 0
    text = page.PAGE.read_text()
    assert 'old' not in text
    assert text.startswith('before')
    assert text.endswith('after\n')
    for part in (
        'Run on Toy GPU (9.0), torch 2.11.0, triton 3.6.0, in 400 s. 1 of 2 comparisons',
        '- wrong: grid, gpu, fp32: 5.0e-01 of the largest element',
        '| elsa | fp16 | forward | gpu 1.25, torch: does not run |',
        '| swin | 2 x 8 x 9 | bf16 | forward | ours 12.5 (300) |',
        'Left out, for want of time: compiled networks: swin.',
        '- failed: a: b',
    ):
        assert part in text


@pytest.mark.parametrize('content', ['{', '[]', '{"machine": {}}', '{"dry": true}'])
def test_the_page_takes_results_of_a_gpu_alone(content, tmp_path):
    path = tmp_path / 'gpu.json'
    path.write_text(content)
    with pytest.raises(UserError, match=r'gpu\.json'):
        main(['--page', str(path)])


def test_the_page_says_that_no_gpu_has_run_it():
    part = page.PAGE.read_text().partition(page.BEGIN)[2].partition(page.END)[0].strip()
    assert part == page.text(None)
    assert 'never run on a GPU' in part.splitlines()[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so():
    with pytest.raises(UserError, match='no GPU here; --dry'):
        main([])
    assert parser().parse_args([]).budget < 8 * 60


@needs_interpreter
@pytest.mark.slow
def test_a_dry_run_by_its_path_without_mmengine(tmp_path):
    pytest.importorskip('triton')
    path = tmp_path / 'dry.json'
    parts = ['attention, shifted', 'elsa, fp16', 'filter conv', 'bilstm2d, level', 'swin', 'sequencer']
    code = f"""
import runpy, sys
sys.modules['mmengine'] = None
sys.argv = ['gpu_check', '--dry', '--json', {str(path)!r}, '--only', *{parts!r}]
runpy.run_path({str(ROOT / 'dev/gpu_check')!r}, run_name='__main__')
"""
    environment = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'} | {'OMP_NUM_THREADS': '1'}
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads(path.read_text())
    assert results['errors'] == results['left_out'] == []
    assert results['machine']['interpreter']
    gpu = {(row['operator'], row['dtype']) for row in results['checks'] if row['form'] == 'gpu'}
    assert gpu == {*(('window attention, shifted', dtype) for dtype in ('fp32', 'fp16', 'bf16')), ('elsa', 'fp16')}
    assert all(row['right'] for row in results['checks'])
    for kind in ('networks', 'compiled networks'):
        assert {row['network'] for row in results[kind]} == {'swin', 'elsa_swin', 'sequencer'}
        assert not any(row['errors'] for row in results[kind])
    assert {'ours', 'timm'} <= set(results['networks'][0]['ms'])
