"""Filter normalisation against its authors, products with neighbours and shifts by a tap against plain loops."""

import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.ops import elsa, filter_norm, neighbour_products, shift_taps, tap_shifts
from mmext_backbones.ops.local_filters import neighbour_products_reference
from tests.vectors import cases_of, relative_error, tensors

DDF = cases_of('ddf.npz')


@pytest.mark.parametrize(('case', 'gain'), [('norm_relu', 2**0.5), ('norm_linear', 1.0)])
def test_filter_norm_agrees_with_its_authors(case, gain):
    (heads, kernel_size), (x, out, grad_out, grad_x) = (
        DDF[case]['args'],
        tensors(DDF[case], 'x', 'out', 'grad_out', 'grad_x'),
    )
    x.requires_grad_()
    actual = filter_norm(x.unflatten(1, (int(heads), -1)), 2, gain).flatten(1, 2)
    actual.backward(grad_out)
    assert x.shape[1] == heads * kernel_size**2
    assert relative_error(actual.detach(), out) <= 2e-6
    assert relative_error(x.grad, grad_x) <= 2e-6


def test_filter_norm_of_equal_weights_is_zero_in_every_precision():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        weights = torch.full((2, 9), 0.5, dtype=dtype, requires_grad=True)
        out = filter_norm(weights, 1)
        assert out.dtype == dtype
        assert not out.any()  # 1e-10 is 0 in float16, and 0 / 0 no number
        out.sum().backward()
        assert weights.grad.isfinite().all()


def test_a_single_tap_is_refused_and_none_is_none(recwarn):
    with pytest.raises(ValueError, match=r'shape \(2, 1\): expected two or more along axis 1'):
        filter_norm(torch.zeros(2, 1), 1)
    assert filter_norm(torch.zeros(0, 9), 1).shape == (0, 9)
    assert not recwarn


def offsets(kernel_size):
    r = kernel_size // 2
    return [(y, x) for y in range(-r, r + 1) for x in range(-r, r + 1)]


@pytest.mark.parametrize(('size', 'kernel_size'), [((4, 5), 3), ((1, 1), 7), ((2, 6), 5)])
def test_products_and_shifts_are_their_definitions(size, kernel_size):
    torch.manual_seed(0)
    H, W = size
    q, k = torch.randn(2, 2, H, W, 3, 4, dtype=torch.float64)
    taps = torch.randn(2, H, W, 3, kernel_size**2, dtype=torch.float64)
    products, shifted = (torch.zeros_like(taps) for _ in range(2))
    for o, (dy, dx) in enumerate(offsets(kernel_size)):
        for y in range(H):
            for x in range(W):
                if 0 <= y + dy < H and 0 <= x + dx < W:
                    products[:, y, x, :, o] = (q[:, y, x] * k[:, y + dy, x + dx]).sum(-1)
                    shifted[:, y, x, :, o] = taps[:, y + dy, x + dx, :, o]
    torch.testing.assert_close(neighbour_products(q, k, kernel_size), products)
    torch.testing.assert_close(neighbour_products_reference(q, k, kernel_size), products)
    torch.testing.assert_close(shift_taps(taps, kernel_size), shifted)
    # the same shift by a fixed convolution, next to a pixel's own term
    own = torch.randn_like(taps)
    pairs = torch.stack((own, taps), dim=-1).flatten(3).permute(0, 3, 1, 2)
    shifts = tap_shifts(kernel_size, pairs).repeat(3, 1, 1, 1)
    summed = F.conv2d(pairs, shifts, padding=kernel_size // 2, groups=len(shifts)).permute(0, 2, 3, 1)
    torch.testing.assert_close(summed.view_as(taps), own + shifted)


def test_products_keep_no_copy_of_the_neighbours():
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    q, k = (torch.randn(1, 12, 12, 2, 8, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        neighbour_products(q, k, 7)
    assert sum(kept.values()) < 5 * q.nbytes  # q, and k with zeros around it; 49 copies else


def test_products_are_counted():
    class Products(torch.nn.Module):
        def forward(self, x):
            return neighbour_products(x, x, 5)

    assert model_cost(Products(), torch.empty(2, 6, 7, 3, 4, device='meta')).macs == 2 * 6 * 7 * 3 * 4 * 25


@pytest.mark.parametrize('backend', ['torch', 'export', 'reference', 'auto'])
@pytest.mark.parametrize('dilation', [1, 2])
def test_filters_without_softmax(backend, dilation):
    torch.manual_seed(0)
    v, filters = torch.randn(2, 6, 5, 4, dtype=torch.float64), torch.randn(2, 18, 5, 4, dtype=torch.float64)
    mul, add = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (v, filters, mul, add)]
    out = elsa(*inputs, num_heads=2, kernel_size=3, dilation=dilation, lam=1, gamma=0.5, softmax=False, backend=backend)
    padded = F.pad(v, [dilation] * 4)
    expected = torch.zeros_like(v)
    for o, (dy, dx) in enumerate(offsets(3)):
        y, x = dilation * (dy + 1), dilation * (dx + 1)
        each = filters.unflatten(1, (2, 9))[:, :, o].repeat_interleave(3, dim=1)
        weight = each * mul.flatten(1)[:, o, None, None] + 0.5 * add.flatten(1)[:, o, None, None]
        expected = expected + weight * padded[:, :, y : y + 5, x : x + 4]
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(v)
    for actual, wanted in zip(*(torch.autograd.grad(y, inputs, grad) for y in (out, expected)), strict=True):
        torch.testing.assert_close(actual, wanted)


def test_the_kernels_refuse_filters_without_softmax():
    v, filters = torch.zeros(1, 2, 3, 3), torch.zeros(1, 9, 3, 3)
    with pytest.raises(RuntimeError, match=r"backend='cpu': it has no .* filters without softmax; backend='torch'"):
        elsa(v, filters, num_heads=1, kernel_size=3, gamma=0, softmax=False, backend='cpu')


@pytest.mark.parametrize('options', [{'gamma': 0}, {'gamma': 0, 'softmax': False}, {'gamma': 0, 'lam': 1}, {}])
def test_static_filters_are_counted_where_there_are_some(options):
    class Filter(torch.nn.Module):
        def forward(self, x):
            static = x.new_empty(6, 3, 3)
            return elsa(x, x.new_empty(2, 18, 5, 4), static, static, num_heads=2, kernel_size=3, **options)

    cost = model_cost(Filter(), torch.empty(2, 6, 5, 4, device='meta'))
    assert cost.macs == 2 * 6 * 5 * 4 * 9 * (1 if options else 2)
