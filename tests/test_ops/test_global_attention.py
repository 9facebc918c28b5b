"""Global attention, and window attention without a bias: against the formula, and against each other."""

import pytest
import torch

from mmext_backbones.layers import GlobalAttention
from mmext_backbones.ops import global_attention, window_attention
from tests.torch_features import NO_KERNELS

WINDOW_FORMS = ['torch', 'reference', 'export', *([] if NO_KERNELS else ['cpu'])]


def projected(size=(5, 6), heads=2, d=8, batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, *size, 3 * heads * d, generator=generator, dtype=torch.float64)


def by_formula(qkv, heads, scale):
    B, H, W, C3 = qkv.shape
    q, k, v = qkv.view(B, H * W, 3, heads, -1).permute(2, 0, 3, 1, 4)
    out = torch.einsum('bhij,bhjd->bihd', torch.einsum('bhid,bhjd->bhij', q, k).mul(scale).softmax(-1), v)
    return out.reshape(B, H, W, C3 // 3)


@pytest.mark.parametrize('form', ['torch', 'reference', 'export'])
def test_every_form_is_the_formula(form):
    qkv, expected = projected().requires_grad_(), by_formula(projected(), 2, 0.3)
    out = global_attention(qkv, num_heads=2, scale=0.3, backend=form)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    leaf = projected().requires_grad_()
    (wanted,) = torch.autograd.grad((by_formula(leaf, 2, 0.3) * weight).sum(), leaf)
    (grad,) = torch.autograd.grad((out * weight).sum(), qkv)
    torch.testing.assert_close(grad, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('form', WINDOW_FORMS)
@pytest.mark.parametrize('size', [(4, 6), (5, 7), (3, 2), (1, 1)], ids=str)
@pytest.mark.parametrize('shift', [0, 1])
def test_windows_without_a_bias_are_windows_with_a_bias_of_zero(form, size, shift):
    weight = torch.randn(2, *size, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for bias, backend in ((None, form), (torch.zeros(2, 12, 12, dtype=torch.float64), 'reference')):
        qkv = projected(size).requires_grad_()
        options = {'num_heads': 2, 'window_size': (3, 4), 'scale': 0.3, 'shift_size': shift}
        out = window_attention(qkv, bias, **options, backend=backend)
        results.append((out, *torch.autograd.grad((out * weight).sum(), qkv)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def test_a_grid_without_a_bias():
    qkv, bias = projected((5, 7)), torch.zeros(2, 6, 6, dtype=torch.float64)
    options = {'num_heads': 2, 'window_size': (2, 3), 'scale': 0.3, 'grid': True}
    expected = window_attention(qkv, bias, **options, backend='reference')
    for form in WINDOW_FORMS:
        torch.testing.assert_close(window_attention(qkv, None, **options, backend=form), expected)


def test_one_window_over_the_map_is_global_attention():
    """Also one that reaches beyond it: nobody attends to the padding."""
    torch.manual_seed(0)
    module, x = GlobalAttention(16, 2).double(), torch.randn(2, 5, 6, 16, dtype=torch.float64)
    windows = GlobalAttention(16, 2, window_size=8).double()
    windows.load_state_dict(module.state_dict())
    torch.testing.assert_close(windows(x), module(x), rtol=1e-11, atol=1e-12)
    windows.window_size = 3
    corner = x[:, 3:, 3:]  # a window of its own, cut off at the bottom
    torch.testing.assert_close(windows(x)[:, 3:, 3:], module(corner), rtol=1e-11, atol=1e-12)


def test_second_derivatives_and_transforms_are_the_references(monkeypatch):
    qkv = projected((2, 2), batch=1).requires_grad_()

    def run(qkv):
        return global_attention(qkv, num_heads=2, scale=0.3)

    with pytest.raises(RuntimeError, match='MMEXT_BACKEND=reference'):
        torch.autograd.grad(run(qkv).square().sum(), qkv, create_graph=True)
    batched = torch.func.vmap(lambda x: run(x[None])[0])(qkv)
    torch.testing.assert_close(batched, run(qkv))
    with pytest.raises(RuntimeError, match=r"backend='torch': .*function transforms"):
        torch.func.vmap(lambda x: global_attention(x[None], num_heads=2, scale=0.3, backend='torch'))(qkv)
    monkeypatch.setenv('MMEXT_BACKEND', 'reference')
    assert torch.autograd.gradgradcheck(run, (qkv,))


@pytest.mark.parametrize('heads', [0, 5])
def test_bad_arguments_are_named(heads):
    with pytest.raises(ValueError, match=rf'qkv has shape \(2, 5, 6, 48\) .* num_heads={heads}'):
        global_attention(projected(), num_heads=heads, scale=1.0)
