"""Whole networks where numbers could be wrong in silence: second derivatives, transforms, batches of gradients."""

import pytest
import torch
from torch.autograd import functional

from .recording import picture, two_stages
from .test_contract import each_class, loss

REFUSED = 'set the environment variable MMEXT_BACKEND=reference'


def hessian_product(function, x, ahead):
    """By differences of the gradient."""

    def gradient(x):
        x = x.requires_grad_()
        return torch.autograd.grad(function(x), x)[0]

    step = 1e-5 * ahead
    return (gradient(x + step) - gradient(x - step)) / 2e-5


def by_grad(function, x, ahead):
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    return torch.autograd.grad((first * ahead).sum(), x)[0]


def by_penalty(function, x, ahead):
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(x), x, create_graph=True)
    (first * ahead).sum().backward()
    return x.grad


FORMS = {
    'grad': by_grad,
    'penalty': by_penalty,
    'hvp': lambda function, x, ahead: functional.hvp(function, x, ahead)[1],
}
TRANSFORMS = {
    'jvp of grad': lambda function, x, ahead: torch.func.jvp(torch.func.grad(function), (x,), (ahead,))[1],
    'grad of grad': lambda function, x, ahead: torch.func.grad(lambda x: (torch.func.grad(function)(x) * ahead).sum())(
        x
    ),
}


@pytest.fixture(params=['eval', 'train'])
def mode(request):
    return request.param


@each_class
def test_second_derivatives_are_refused_or_right(cls, mode, monkeypatch):
    model = two_stages(cls).train(mode == 'train')
    x, ahead = picture((9, 11)), torch.randn(picture((9, 11)).shape).double()

    def function(x):
        return loss(model(x))

    expected = hessian_product(function, x, ahead)
    for form in FORMS.values():
        with pytest.raises(RuntimeError, match=REFUSED):
            form(function, x, ahead)
    with pytest.raises(RuntimeError, match=REFUSED):
        torch.autograd.grad(function(x), list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match=REFUSED):
        functional.jacobian(lambda x: model(x)[0].flatten()[:2], x, vectorize=True)

    monkeypatch.setenv('MMEXT_BACKEND', 'reference')
    for form in FORMS.values():
        torch.testing.assert_close(form(function, x, ahead), expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


@each_class
def test_function_transforms_are_right(cls):
    model = two_stages(cls).eval()
    x, ahead = picture((9, 11)), torch.randn(picture((9, 11)).shape).double()

    def function(x):
        return loss(model(x))

    expected = hessian_product(function, x, ahead)
    for form in TRANSFORMS.values():
        torch.testing.assert_close(form(function, x, ahead), expected, rtol=1e-4, atol=1e-5 * expected.abs().max())
    images = torch.cat([x, ahead])
    outs = torch.func.vmap(lambda image: model(image[None])[0][0])(images)
    torch.testing.assert_close(outs, model(images)[0])
