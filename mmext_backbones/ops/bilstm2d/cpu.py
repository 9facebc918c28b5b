"""BiLSTM2D on the CPU through a compiled kernel (`cpu.c`), where a C compiler is at hand.

The products with the input are one matrix product for all four directions; the kernel walks the recurrences over its
result, where the tokens are. Kept for the backward pass, besides the input and the output: the gates and the cells, 20
numbers a token and unit. torch's LSTM keeps about 150, a copy of the input for either axis among them.
"""

import contextlib
import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..c_kernels import Kernels, pointers
from ..derivatives import first_order
from ..dispatcher import constant_in_graphs, register
from ..torch_versions import has_half_products, is_autocast_enabled

LANES = 16  # the kernel's vectors have no more elements


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ('batch', 'height', 'width', 'hidden', 'threads')]


_POINTER = ctypes.c_void_p
_KERNELS = Kernels(
    Path(__file__).with_name('cpu.c'),
    _Shape,
    {'bilstm2d_forward': [*[_POINTER] * 6, ctypes.c_int64], 'bilstm2d_backward': [_POINTER] * 7},
)


@constant_in_graphs
def why_not() -> str | None:
    """Why the kernel cannot run here, or None. The first call on a machine compiles it."""
    return _KERNELS.why_not()


def _matrices(weights: Sequence[Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The four W [4h, C] in the type of `x`, and the four R [4h, h] in that of the recurrences."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return [w.to(x.dtype) for w in weights[0::4]], [w.to(dtype).contiguous() for w in weights[1::4]]


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array:
    return (_POINTER * len(tensors))(*pointers(*tensors))


def _padded(h: int) -> int:
    return h + -h % LANES


def _lines(x: Tensor) -> int:
    """Sequences of all directions."""
    B, H, W, _ = x.shape
    return 2 * B * (H + W)


def _run(x: Tensor, weights: Sequence[Tensor], keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    B, H, W, _ = x.shape
    h = weights[1].shape[1]
    inner, recurrent = _matrices(weights, x)
    bias = torch.stack([a + b for a, b in zip(weights[2::4], weights[3::4], strict=True)]).to(recurrent[0].dtype)
    gates, tokens = x.new_empty(B * H * W, 16 * h), x.flatten(0, 2)
    for part, matrix in zip(
        gates.chunk(4, dim=1), inner, strict=True
    ):  # as fast as one product with a copy of the four
        torch.mm(tokens, matrix.mT, out=part)
    gates = gates.to(bias.dtype)
    cells = gates.new_empty((B, H, W, 4 * h) if keep else (_lines(x), h))
    out = gates.new_empty(B, H, W, 4 * h)
    packed = gates.new_empty(16 * h * _padded(h))
    shape = _Shape(B, H, W, h, torch.get_num_threads())
    arguments = pointers(bias, gates, cells, out, packed)
    _KERNELS[gates.dtype].bilstm2d_forward(ctypes.byref(shape), _addresses(recurrent), *arguments, keep)
    return out, gates.view(B, H, W, 16 * h), cells


def _forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    return _run(x, weights, keep=False)[0]


def _forward_keeping(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return _run(x, weights, keep=True)


def _backward(
    grad: Tensor, x: Tensor, out: Tensor, gates: Tensor, cells: Tensor, weights: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `x`, and stacked of the four W, R and biases."""
    B, H, W, _ = x.shape
    h = weights[1].shape[1]
    inner, recurrent = _matrices(weights, x)
    grad, grad_gates = grad.contiguous(), torch.empty_like(gates)
    packed = gates.new_empty(16 * h * _padded(h))
    states = gates.new_zeros(2 * _lines(x) * _padded(h))
    shape = _Shape(B, H, W, h, torch.get_num_threads())
    arguments = pointers(gates, cells, grad, grad_gates, packed, states)
    _KERNELS[gates.dtype].bilstm2d_backward(ctypes.byref(shape), _addresses(recurrent), *arguments)

    grad_bias = grad_gates.view(-1, 4, 4 * h).sum(dim=0)
    grad_gates, tokens = grad_gates.view(-1, 16 * h).to(x.dtype), x.flatten(0, 2)
    parts = grad_gates.chunk(4, dim=1)
    grad_x = parts[0] @ inner[0]
    for part, matrix in zip(parts[1:], inner[1:], strict=True):
        grad_x.addmm_(part, matrix)

    down, up, right, left = out.to(x.dtype).chunk(4, dim=3)
    top, side = down.new_zeros(B, 1, W, h), down.new_zeros(B, H, 1, h)
    before = (  # the states that the tokens were entered with
        torch.cat((top, down[:, :-1]), dim=1),
        torch.cat((up[:, 1:], top), dim=1),
        torch.cat((side, right[:, :, :-1]), dim=2),
        torch.cat((left[:, :, 1:], side), dim=2),
    )
    grad_recurrent = torch.stack([part.mT @ state.view(-1, h) for part, state in zip(parts, before, strict=True)])
    return grad_x.view(x.shape), grad_gates.mT @ tokens, grad_recurrent, grad_bias


def _fake_forward(x, weights):
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty((*x.shape[:3], weights[0].shape[0]), dtype=dtype)


def _fake_forward_keeping(x, weights):
    out = _fake_forward(x, weights)
    return out, out.new_empty(*x.shape[:3], 4 * out.shape[3]), torch.empty_like(out)


def _fake_backward(grad, x, out, gates, cells, weights):
    width, h = weights[1].shape
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format),
        x.new_empty(4 * width, x.shape[3]),
        x.new_empty(4, width, h),
        gates.new_empty(4, width),
    )


register('bilstm2d', '(Tensor x, Tensor[] weights) -> Tensor', _forward, _fake_forward)
register(
    'bilstm2d_keeping',
    '(Tensor x, Tensor[] weights) -> (Tensor, Tensor, Tensor)',
    _forward_keeping,
    _fake_forward_keeping,
)
register(
    'bilstm2d_backward',
    '(Tensor grad, Tensor x, Tensor out, Tensor gates, Tensor cells, Tensor[] weights)'
    ' -> (Tensor, Tensor, Tensor, Tensor)',
    _backward,
    _fake_backward,
)


class BiLSTM2DCPU(torch.autograd.Function):
    """`x` [B, H, W, C] and the 16 tensors of `ops.bilstm2d` -> [B, H, W, 4h], in float32 at least."""

    @staticmethod
    def forward(ctx, x, *weights):
        out, gates, cells = torch.ops.mmext_backbones.bilstm2d_keeping(x, list(weights))
        ctx.save_for_backward(x, out, gates, cells, *weights)
        return out

    @staticmethod
    @first_order
    def backward(ctx, grad):
        x, out, gates, cells, *weights = ctx.saved_tensors
        grads = torch.ops.mmext_backbones.bilstm2d_backward(grad, x, out, gates, cells, weights)
        inner, recurrent, bias = grads[1].chunk(4), grads[2].unbind(), grads[3].unbind()
        each = [grad for i in range(4) for grad in (inner[i], recurrent[i], bias[i], bias[i])]
        return grads[0], *(grad.to(w.dtype) for grad, w in zip(each, weights, strict=True))


def bilstm2d_cpu(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """`ops.bilstm2d` after its checks. `x` has the type of the matrix products; the recurrences, and so the result,
    are in float32 at least."""
    if x.dtype == torch.float16 and not has_half_products():
        x = x.float()
    # without autocast there is nothing to leave, and a strict export cannot hold the context
    autocast = not x.is_meta and is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if autocast else contextlib.nullcontext():
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
            return BiLSTM2DCPU.apply(x, *weights)
        return torch.ops.mmext_backbones.bilstm2d(x, list(weights))
