"""Sums over neighbours as products of banded matrices, against the loops over taps and the reference of ELSA."""

import pytest
import torch

from mmext_backbones.ops import banded_products, banded_shifts, banded_sum, elsa_reference, shift_taps
from mmext_backbones.ops.local_filters import neighbour_products_reference

SIZES = [(1, 1), (4, 8), (7, 17), (20, 3)]  # a tile in part, in whole, and more of them
each = pytest.mark.parametrize(
    ('size', 'kernel_size'), [(SIZES[2], 3), (SIZES[3], 5), (SIZES[0], 9), *((s, 7) for s in SIZES)]
)


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


@each
def test_the_sum_and_its_gradients_are_those_of_the_reference(size, kernel_size):
    v, filters = (random(2, *size, 3, n).requires_grad_() for n in (4, kernel_size**2))
    grad = random(2, *size, 3, 4) + 1
    found = []
    for by_bands in (True, False):
        if by_bands:
            out = banded_sum(v, filters, kernel_size)
        else:
            options = {'num_heads': 3, 'kernel_size': kernel_size, 'dilation': 1, 'softmax': False}
            maps = [x.flatten(3).permute(0, 3, 1, 2) for x in (v, filters)]
            out = elsa_reference(*maps, None, None, **options).permute(0, 2, 3, 1).unflatten(3, (3, 4))
        found.append([out, *torch.autograd.grad(out, (v, filters), grad)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@each
def test_products_and_shifts_are_those_of_the_taps(size, kernel_size):
    q, k = random(2, 2, *size, 3, 4)
    taps = random(2, *size, 3, kernel_size**2)
    expected = neighbour_products_reference(q, k, kernel_size)
    torch.testing.assert_close(banded_products(q, k, kernel_size), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(banded_shifts(taps, kernel_size), shift_taps(taps, kernel_size))


def test_strided_inputs_and_no_images():
    v, filters = random(2, 4, 9, 10, 3).permute(0, 2, 3, 1, 4)[..., :2], random(2, 9, 10, 4, 9)
    torch.testing.assert_close(banded_sum(v, filters, 3), banded_sum(v.contiguous(), filters, 3))
    assert banded_sum(v[:0], filters[:0], 3).shape == (0, 9, 10, 4, 2)
    assert banded_products(v[:0], v[:0], 3).shape == banded_shifts(filters[:0], 3).shape == (0, 9, 10, 4, 9)
