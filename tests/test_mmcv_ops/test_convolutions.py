"""Deformable and masked convolutions through mmcv's own functions, against mmcv as compiled and against plain ones."""

import pytest
import torch
from torch.nn.functional import conv2d

import mmext_backbones  # noqa: F401  (finds the operators)

from mmcv import ops  # isort: skip

from tests.test_mmcv_ops.vectors import vectors

NAMES = {'x': 'x', 'offset': 'offset', 'mask': 'mask', 'weight': 'weight', 'bias': 'bias'}


@pytest.mark.parametrize(
    'case', ['deform_conv_a', 'deform_conv_b', 'modulated_deform_conv_a', 'modulated_deform_conv_b']
)
def test_as_compiled(case):
    given = vectors(case)
    function = ops.modulated_deform_conv2d if case.startswith('modulated') else ops.deform_conv2d
    inputs = {name: given[name].requires_grad_() for name in NAMES if name in given}
    out = function(*inputs.values(), *given['args'].tolist())
    out.backward(given['grad_output'])
    torch.testing.assert_close(out, given['output'], rtol=1e-6, atol=1e-6)
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor.grad, given[f'grad_{name}'], rtol=1e-6, atol=1e-6 * tensor.grad.abs().max())


def inputs(modulated, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    shapes = {'x': (2, 4, 5, 7), 'offset': (2, 36, 3, 4), 'mask': (2, 18, 3, 4), 'weight': (6, 2, 3, 3), 'bias': (6,)}
    if not modulated:
        del shapes['mask'], shapes['bias']
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype) for shape in shapes.values()]


GEOMETRY = (2, 2, 2, 2, 2)  # stride, padding, dilation, groups, groups of offsets


@pytest.mark.parametrize('modulated', [False, True])
def test_gradients(modulated):
    function = ops.modulated_deform_conv2d if modulated else ops.deform_conv2d
    given = [tensor.requires_grad_() for tensor in inputs(modulated)]
    assert torch.autograd.gradcheck(lambda *args: function(*args, *GEOMETRY), given, eps=1e-6, atol=1e-5)


def test_gradient_of_the_weight_alone():
    x, offset, weight = inputs(False)
    both, alone = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    ops.deform_conv2d(x.requires_grad_(), offset, both, *GEOMETRY).sum().backward()
    ops.deform_conv2d(x.detach(), offset, alone, *GEOMETRY).sum().backward()
    torch.testing.assert_close(alone.grad, both.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('modulated', [False, True])
def test_without_offsets_it_is_a_convolution(modulated):
    given = inputs(modulated)
    given[1].zero_()
    if modulated:
        given[2].fill_(1)
    function = ops.modulated_deform_conv2d if modulated else ops.deform_conv2d
    plain = conv2d(given[0], given[-2] if modulated else given[-1], given[-1] if modulated else None, 2, 2, 2, 2)
    torch.testing.assert_close(function(*given, *GEOMETRY), plain)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('modulated', [False, True])
def test_half_types(modulated, dtype):
    function = ops.modulated_deform_conv2d if modulated else ops.deform_conv2d
    given = [tensor.requires_grad_() for tensor in inputs(modulated, dtype)]
    out = function(*given, *GEOMETRY)
    out.sum().backward()
    exact = function(*[tensor.detach().float() for tensor in given], *GEOMETRY)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-2)
    assert all(tensor.grad.dtype == dtype and tensor.grad.isfinite().all() for tensor in given)


@pytest.mark.parametrize('some', [0.0, 0.4, 1.0])
@pytest.mark.parametrize(('kernel', 'padding'), [(3, 1), (1, 0), ((3, 5), (1, 2))])
def test_masked_convolution(some, kernel, padding):
    torch.manual_seed(0)
    layer = ops.MaskedConv2d(4, 6, kernel, padding=padding).double()
    x = torch.randn(1, 4, 7, 9, dtype=torch.float64)
    mask = (torch.rand(1, 7, 9) < some).double()
    with torch.no_grad():
        torch.testing.assert_close(layer(x, mask), layer(x) * mask)
        for dtype in (torch.float16, torch.bfloat16):
            assert layer.to(dtype)(x.to(dtype), mask).dtype == dtype
