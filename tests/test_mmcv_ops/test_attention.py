"""Multi-scale deformable attention and PSANet's masks through mmcv's own functions."""

import pytest
import torch

import mmext_backbones  # noqa: F401  (finds the operators)

from mmcv import ops  # isort: skip
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch

from tests.test_mmcv_ops.vectors import vectors


def attend(value, shapes, locations, weights):
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    return MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


def test_attention_as_stored():
    given = vectors('ms_deform_attn')
    inputs = {name: given[name].requires_grad_() for name in ('value', 'locations', 'weights')}
    out = attend(inputs['value'], given['shapes'], inputs['locations'], inputs['weights'])
    out.backward(given['grad_output'])
    torch.testing.assert_close(out, given['output'], rtol=1e-6, atol=1e-6)
    for name, tensor in inputs.items():
        torch.testing.assert_close(tensor.grad, given[f'grad_{name}'], rtol=1e-6, atol=1e-6 * tensor.grad.abs().max())


def random_inputs(dtype=torch.float64):
    rng = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[3, 5], [1, 2]])
    value = torch.randn(2, 17, 2, 3, generator=rng, dtype=torch.float64)
    locations = 1.4 * torch.rand(2, 4, 2, 2, 3, 2, generator=rng, dtype=torch.float64) - 0.2  # some outside
    weights = torch.randn(2, 4, 2, 2, 3, generator=rng, dtype=torch.float64)
    return value.to(dtype), shapes, locations.to(dtype), weights.to(dtype)


def plain_attention(value, shapes, locations, weights):
    """Equation 3 of the paper by loops: every point reads the four pixels about it."""
    B, Q, heads, levels, P = weights.shape
    out = torch.zeros(B, Q, heads, value.shape[-1], dtype=value.dtype)
    for b, q, h, level, p in torch.cartesian_prod(*map(torch.arange, (B, Q, heads, levels, P))).tolist():
        (H, W), start = shapes[level].tolist(), int(shapes[:level].prod(1).sum())
        x, y = (locations[b, q, h, level, p] * torch.tensor([W, H]) - 0.5).tolist()
        for row in (int(y // 1), int(y // 1) + 1):
            for column in (int(x // 1), int(x // 1) + 1):
                if 0 <= row < H and 0 <= column < W:
                    part = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[b, q, h, level, p]
                    out[b, q, h] += part * value[b, start + row * W + column, h]
    return out.flatten(2)


def test_attention_is_the_formula():
    given = random_inputs()
    torch.testing.assert_close(attend(*given), plain_attention(*given), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attend(*given), multi_scale_deformable_attn_pytorch(*given), rtol=1e-12, atol=1e-12)


def test_gradients_of_attention():
    value, shapes, locations, weights = (tensor for tensor in random_inputs())
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    assert torch.autograd.gradcheck(lambda v, at, w: attend(v, shapes, at, w), inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_attention_in_half_types(dtype):
    value, shapes, locations, weights = random_inputs(dtype)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    out = attend(value, shapes, locations, weights)
    out.sum().backward()
    exact = attend(value.detach().double(), shapes, locations.detach().double(), weights.detach().double())
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert all(tensor.grad.dtype == dtype for tensor in (out, *inputs) if tensor.grad is not None)


@pytest.mark.parametrize('kind', ['collect', 'distribute'])
def test_masks_as_compiled(kind):
    given = vectors(f'psa_mask_{kind}')
    x = given['x'].requires_grad_()
    out = ops.PSAMask(kind, tuple(given['mask_size'].tolist()))(x)
    out.backward(given['grad_output'])
    assert torch.equal(out, given['output'])
    torch.testing.assert_close(x.grad, given['grad_x'], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('kind', ['collect', 'distribute'])
@pytest.mark.parametrize('mask_size', [(3, 5), (4, 2), (9, 11)])
def test_masks_by_loops(kind, mask_size):
    x = torch.randn(2, mask_size[0] * mask_size[1], 3, 4, dtype=torch.float64, requires_grad=True)
    H, W = x.shape[2:]
    out = ops.PSAMask(kind, mask_size)(x)
    expected = torch.zeros_like(out)
    for h, w, y, x2 in torch.cartesian_prod(*map(torch.arange, (H, W, H, W))).tolist():
        row, column = y - h + (mask_size[0] - 1) // 2, x2 - w + (mask_size[1] - 1) // 2
        if 0 <= row < mask_size[0] and 0 <= column < mask_size[1]:
            value = x.detach()[:, row * mask_size[1] + column, h, w]
            place = (y * W + x2, h, w) if kind == 'collect' else (h * W + w, y, x2)
            expected[:, place[0], place[1], place[2]] = value
    assert torch.equal(out, expected)
    assert torch.autograd.gradcheck(ops.PSAMask(kind, mask_size), x)
