"""CARAFE through mmcv's own functions, against loops."""

import pytest
import torch

import mmext_backbones  # noqa: F401  (finds the operators)

from mmcv import ops  # isort: skip


def given(scale, groups, kernel, dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(2, 4, 3, 5, generator=rng, dtype=torch.float64)
    masks = torch.randn(2, groups * kernel**2, 3 * scale, 5 * scale, generator=rng, dtype=torch.float64)
    return features.to(dtype), masks.to(dtype)


def plain(features, masks, kernel, groups, scale):
    B, C, H, W = features.shape
    out = torch.zeros(B, C, H * scale, W * scale, dtype=features.dtype)
    for c, y, x, i, j in torch.cartesian_prod(*map(torch.arange, (C, H * scale, W * scale, kernel, kernel))).tolist():
        row, column = y // scale + i - kernel // 2, x // scale + j - kernel // 2
        if 0 <= row < H and 0 <= column < W:
            tap = (c // (C // groups) * kernel + i) * kernel + j
            out[:, c, y, x] += masks[:, tap, y, x] * features[:, c, row, column]
    return out


@pytest.mark.parametrize(('scale', 'groups', 'kernel'), [(2, 1, 5), (1, 2, 3), (3, 4, 1), (2, 2, 3)])
@pytest.mark.parametrize('function', [ops.carafe, ops.carafe_naive], ids=['carafe', 'naive'])
def test_formula(function, scale, groups, kernel):
    features, masks = given(scale, groups, kernel)
    out = function(features, masks, kernel, groups, scale)
    torch.testing.assert_close(out, plain(features, masks, kernel, groups, scale), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('scale', 'groups', 'kernel'), [(2, 1, 3), (1, 2, 3)])
def test_gradients(scale, groups, kernel):
    inputs = [tensor.requires_grad_() for tensor in given(scale, groups, kernel)]
    assert torch.autograd.gradcheck(lambda *args: ops.carafe(*args, kernel, groups, scale), inputs)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    inputs = [tensor.requires_grad_() for tensor in given(2, 2, 3, dtype)]
    out = ops.carafe(*inputs, 3, 2, 2)
    out.sum().backward()
    exact = plain(*[tensor.detach().double() for tensor in inputs], 3, 2, 2)
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert all(tensor.grad.dtype == dtype for tensor in inputs)


def test_the_layer_trains():
    torch.manual_seed(0)
    layer = ops.CARAFEPack(8, 2)
    out = layer(torch.randn(1, 8, 5, 7))
    out.square().mean().backward()
    assert out.shape == (1, 8, 10, 14)
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in layer.named_parameters() if 'weight' in name)
