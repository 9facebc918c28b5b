"""Which form of an operator runs: the argument, the environment, the names of earlier versions."""

import pytest
import torch

from mmext_backbones.ops import bilstm2d, elsa, product_conv, window_attention
from mmext_backbones.ops.backends import ALIASES, FORMS, choose, is_named

HAS = ('cpu', 'torch', 'reference')
VARIABLES = ('MMEXT_BACKEND', 'MMEXT_SUM_BACKEND')


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def chosen(backend='auto', lacking=()):
    """What runs of an operator `sum`, where the forms `lacking` cannot."""
    return choose('sum', backend, HAS, lambda form: f'no {form} here' if form in lacking else None)


def test_auto_takes_the_first_that_can_run():
    assert chosen() == 'cpu'
    assert chosen(lacking=['cpu']) == 'torch'


def test_a_form_that_is_asked_for_runs_or_says_why_not():
    assert chosen('reference') == 'reference'
    with pytest.raises(RuntimeError, match="backend='cpu': no cpu here"):
        chosen('cpu', lacking=['cpu'])
    with pytest.raises(ValueError, match="backend='gpu': expected one of auto, cpu, torch, reference"):
        chosen('gpu')


def test_the_environment_names_the_form_of_the_operators_that_have_it(monkeypatch):
    monkeypatch.setenv('MMEXT_BACKEND', 'reference')
    assert chosen() == 'reference'
    assert chosen('torch') == 'torch'  # an argument goes before it
    monkeypatch.setenv('MMEXT_BACKEND', 'export')
    assert chosen() == 'cpu'  # as if it were not set
    monkeypatch.setenv('MMEXT_SUM_BACKEND', 'torch')  # of one operator, of earlier versions
    assert chosen() == 'torch'
    monkeypatch.setenv('MMEXT_SUM_BACKEND', 'fastest')
    with pytest.raises(ValueError, match="backend='fastest': expected one of auto, cpu, torch, reference"):
        chosen()
    monkeypatch.delenv('MMEXT_SUM_BACKEND')
    monkeypatch.setenv('MMEXT_BACKEND', 'cpu')
    with pytest.raises(RuntimeError, match="backend='cpu': no cpu here"):
        chosen(lacking=['cpu'])


@pytest.mark.parametrize('name', ALIASES)
def test_names_of_earlier_versions_stand_for_the_forms(name):
    assert ALIASES[name] in FORMS
    assert choose('sum', name, FORMS, lambda form: None) == ALIASES[name]


def test_one_variable_for_all_operators(monkeypatch):
    """Of each the form that it names: the same bits as by the argument."""
    x, weights = torch.randn(1, 3, 4, 8), [torch.randn(s) for s in [(8, 8), (8, 2), (8,), (8,)] * 2]
    v, logits, weight = torch.randn(1, 8, 3, 4), torch.randn(1, 9, 3, 4), torch.randn(8, 4, 7, 7)
    calls = [
        lambda **form: window_attention(
            torch.cat([x] * 3, dim=3), torch.ones(2, 4, 4), num_heads=2, window_size=(2, 2), scale=0.3, **form
        ),
        lambda **form: elsa(v, logits, gamma=0, num_heads=1, kernel_size=3, **form),
        lambda **form: product_conv(x, x, weight, **form),
        lambda **form: bilstm2d(x, weights, weights, **form),
    ]
    for form in ('torch', 'reference'):
        monkeypatch.setenv('MMEXT_BACKEND', form)
        for call in calls:
            assert torch.equal(call(), call(backend=form))


def test_who_asks_by_name(monkeypatch):
    assert is_named('gpu', 'sum', 'gpu')
    assert is_named('gpu', 'sum', 'triton')  # of earlier versions
    assert not is_named('gpu', 'sum', 'auto')
    monkeypatch.setenv('MMEXT_BACKEND', 'gpu')
    assert is_named('gpu', 'sum', 'auto')
    assert not is_named('gpu', 'sum', 'torch')
    monkeypatch.setenv('MMEXT_SUM_BACKEND', 'torch')
    assert not is_named('gpu', 'sum', 'auto')
