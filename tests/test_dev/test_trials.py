"""The trials in small: what they run, and that they would notice what they are there for."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'dev' / 'trials'))

import forwards  # noqa: E402
import resources  # noqa: E402

linux = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads /proc, which is Linux')


# --------------------------------------------------------------------------------------------------------------------
# Random forwards


@pytest.mark.slow
@linux
def test_random_forwards(monkeypatch):
    number, seed = 30, 29  # which draws every kind among its first thirty cases, most of them small
    monkeypatch.setattr(forwards, 'CHECKPOINTS', 4)  # looking at all objects of the process takes longer than a case
    result = forwards.trial(number, seed=seed, show=False)
    assert not result['failures']
    counts = result['counts']
    assert set(counts) >= {*forwards.FAMILIES, *forwards.PRECISIONS, *forwards.LAYOUTS, *forwards.MODES}
    assert counts['compared'] > number / 10
    assert all(most is not None for name, (_, most) in result['caches'].items() if 'mask' in name)
    json.dumps(result)


def test_a_case_follows_from_its_numbers():
    assert forwards.draw(3, 14) == forwards.draw(3, 14)
    assert forwards.draw(3, 14) != forwards.draw(4, 14)


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (lambda out: out * float('nan'), 'not finite'),
        (lambda out: out[..., :-1], 'shapes'),
        (lambda out: out.double() if out.dtype is not torch.float64 else out.float(), 'expected'),
        (lambda out: out.transpose(2, 3).contiguous().transpose(2, 3), 'not contiguous'),
        (lambda out: out + 1, 'of its largest element off'),
    ],
    ids=['nan', 'shape', 'type', 'layout', 'values'],
)
def test_a_wrong_forward_is_noticed(monkeypatch, spoil, words):
    indices = (i for i in range(1000) if (case := forwards.draw(0, i)).compared and min(case.size) > 64)
    case = next(case for case in (forwards.draw(0, i) for i in indices) if case.precision == 'float32')
    cls = forwards.FAMILIES[case.family]
    forward, calls = cls.forward, []

    def wrong(self, x):
        calls.append(x)
        outs = forward(self, x)
        return tuple(map(spoil, outs)) if len(calls) == 1 else outs  # the second call is the comparison

    assert not forwards.run(case)
    monkeypatch.setattr(cls, 'forward', wrong)
    assert any(words in fault for fault in forwards.run(case))


def test_wrong_gradients_are_noticed(monkeypatch):
    cases = (forwards.draw(0, i) for i in range(10000))
    case = next(case for case in cases if case.compared and case.mode == 'backward' and case.precision == 'float32')
    cls = forwards.FAMILIES[case.family]
    forward = cls.forward
    assert not forwards.run(case)
    monkeypatch.setattr(
        cls,
        'forward',
        lambda self, x: tuple(out if x.dtype == torch.float64 else Half.apply(out) for out in forward(self, x)),
    )
    assert any('the gradient is' in fault for fault in forwards.run(case))


class Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({}, None),
        ({'resident': 900.0}, 'resident MiB: 800.0 after 100 cases, 900.0 after 500'),
        ({'threads': 5}, 'threads'),
        ({'files': 7}, 'open files'),
        ({'tensors': 900}, 'tensors'),
    ],
)
def test_growth_is_noticed(change, words):
    held = resources.Usage(resident=800.0, threads=4, files=6, tensors=10)
    caches = {'bounded': (16, 16), 'free': (1, None)}
    samples = [forwards.Sample(n, held, caches) for n in (50, 100, 200, 300, 400)]
    samples.append(forwards.Sample(500, held._replace(**change), caches))
    leaks = forwards.leaked(samples)
    assert (leaks == []) if words is None else (len(leaks) == 1 and words in leaks[0])
    samples[-1] = forwards.Sample(500, held, {**caches, 'free': (9, None)})
    assert forwards.leaked(samples) == ['free: 1 entries after 100 cases, 9 after 500, and no limit']


# --------------------------------------------------------------------------------------------------------------------
# Kills


def test_a_difference_is_seen(tmp_path, monkeypatch):
    """The comparison tells checkpoints apart that differ in one bit of one tensor."""
    monkeypatch.setenv('OMP_NUM_THREADS', '1')  # the trial sets it
    import kills

    state = {'state_dict': {'a': torch.zeros(3)}, 'optimizer': {'state': {0: torch.ones(2)}}, 'param_schedulers': [1.0]}
    torch.save(state, tmp_path / 'one.pth')
    assert kills.equal(tmp_path / 'one.pth', tmp_path / 'one.pth')
    state['optimizer']['state'][0][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    torch.save(state, tmp_path / 'other.pth')
    assert not kills.equal(tmp_path / 'one.pth', tmp_path / 'other.pth')


# --------------------------------------------------------------------------------------------------------------------
# The long training


@pytest.fixture
def soak():
    pytest.importorskip('mmdet', exc_type=ImportError)
    import soak

    return soak


@pytest.mark.slow
@linux
def test_training_is_sampled(soak, tmp_path, monkeypatch):
    from mmext_backbones.datasets.shapes.files import make_shapes
    from mmext_backbones.engine import setup

    make_shapes(tmp_path / 'made', size=64, num_train=8, num_val=2)
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: tmp_path / 'made')
    monkeypatch.setattr(soak, 'VALIDATIONS', 2)
    monkeypatch.chdir(tmp_path)
    samples = soak.soak('detection', 12, tmp_path, seed=0)
    assert [sample.iteration for sample in samples] == list(range(1, 13))
    assert all(len(sample.loaders) >= 2 for sample in samples)
    assert all(sample.main > 100 and sample.objects > 1000 for sample in samples)
    _, figures = soak.judge(samples)
    assert 'training' in figures
    assert len(figures) >= 3  # and both loaders; those of another test may still be there


def trace(soak, main, loader=lambda n: 500.0, files=lambda n: 20):
    return [soak.Sample(n, main(n), {7: loader(n), n + 1000: 1.0}, 3, files(n), 10**5) for n in range(20, 2001, 20)]


@pytest.mark.parametrize(
    ('main', 'words'),
    [
        (lambda n: 900 + 30 * (n > 200), None),  # the first validation
        (lambda n: 900 + 8 * n / 1024, '8.00 KiB an iteration'),
        (lambda n: 900 + (n // 250) * 2, 'KiB an iteration'),  # something a validation leaves behind
        (lambda n: 900 + 40 * (n > 1900), '% after the warm-up'),
    ],
)
def test_a_leak_is_noticed(soak, main, words):
    faults, figures = soak.judge(trace(soak, main))
    assert any(words in fault for fault in faults) if words else not faults
    assert list(figures) == ['training', 'loader 7']
    loaders, _ = soak.judge(trace(soak, lambda n: 900.0, loader=main))
    assert bool(loaders) == bool(words)


def test_open_files_are_counted(soak):
    assert not soak.judge(trace(soak, lambda n: 900.0, files=lambda n: 20 + n % 60))[0]
    assert soak.judge(trace(soak, lambda n: 900.0, files=lambda n: 20 + n // 100))[0]
