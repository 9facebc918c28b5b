"""Focal losses through mmcv's own functions, against their formulas."""

import pytest
import torch
from torch.nn.functional import one_hot

import mmext_backbones  # noqa: F401  (finds the operators)

from mmcv import ops  # isort: skip

CLASSES = 4


def given(dtype=torch.float64, background=True):
    rng = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(9, CLASSES, generator=rng, dtype=torch.float64)
    target = torch.arange(9) % (CLASSES + background)  # the last is the background
    return x.to(dtype), target, torch.rand(CLASSES, generator=rng, dtype=torch.float64).to(dtype)


def sigmoid_formula(x, target, gamma, alpha, weight):
    known = target < CLASSES
    right = one_hot(target, CLASSES + 1)[:, :CLASSES].bool()
    p = 1 / (1 + (-x).exp())
    loss = torch.where(right, -alpha * (1 - p) ** gamma * p.log(), -(1 - alpha) * p**gamma * (1 - p).log())
    return loss * torch.where(known, weight[target.clamp(max=CLASSES - 1)], 1.0)[:, None]


def softmax_formula(x, target, gamma, alpha, weight):
    p = x.softmax(1)[torch.arange(len(x)), target]
    return -alpha * (1 - p) ** gamma * p.log() * weight[target]


KINDS = [(ops.sigmoid_focal_loss, sigmoid_formula, True), (ops.softmax_focal_loss, softmax_formula, False)]


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize(('gamma', 'alpha'), [(2.0, 0.25), (0.5, 0.7), (0.0, 0.5)])
@pytest.mark.parametrize(('function', 'formula', 'background'), KINDS, ids=['sigmoid', 'softmax'])
def test_formula_and_gradient(function, formula, background, gamma, alpha, weighted):
    x, target, weight = given(background=background)
    own = weight if weighted else None
    expected = formula(x, target, gamma, alpha, weight if weighted else torch.ones_like(weight))
    torch.testing.assert_close(function(x, target, gamma, alpha, own, 'none'), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(function(x, target, gamma, alpha, own, 'sum'), expected.sum())
    torch.testing.assert_close(function(x, target, gamma, alpha, own, 'mean'), expected.sum() / len(x))
    # mmcv multiplies the derivatives of elements by a gradient of their sum: one number
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, target, gamma, alpha, own, 'sum'), x)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(('function', 'formula', 'background'), KINDS, ids=['sigmoid', 'softmax'])
def test_half_types(function, formula, background, dtype):
    x, target, weight = given(dtype, background)
    x.requires_grad_()
    loss = function(x, target, 2.0, 0.25, weight, 'sum')
    loss.backward()
    expected = formula(x.detach().double(), target, 2.0, 0.25, weight.double()).sum()
    # mmcv takes the softmax itself in the half type
    torch.testing.assert_close(loss.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=0)
    assert loss.dtype == x.grad.dtype == dtype


def test_large_logits():
    x = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(x, torch.tensor([0, 0]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss, torch.tensor([[0.0, 0.0], [50.0, 150.0]]))
    loss.sum().backward()
    assert x.grad.isfinite().all()


def test_no_rows():
    x = torch.zeros(0, CLASSES, requires_grad=True)
    ops.sigmoid_focal_loss(x, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, 'sum').backward()
    assert x.grad.shape == x.shape
