"""The ELSA operator on the CPU through a compiled kernel (`cpu.c`), where a C compiler is at hand.

Layout [B, H, W, C], as between the blocks; formula, accumulation and gradients as written in the C file.
"""

import contextlib
import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ..c_kernels import Kernels, pointers, token_rows
from ..derivatives import first_order
from ..dispatcher import constant_in_graphs, register

CHUNKS = 32  # of rows, each with its own sums of the static filters' gradients


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            'batch', 'height', 'width', 'channels', 'heads', 'kernel_size', 'v_stride', 'threads'
        )
    ]  # fmt: skip


_POINTER = ctypes.c_void_p
_KERNELS = Kernels(
    Path(__file__).with_name('cpu.c'),
    _Shape,
    {
        'elsa_forward': [_POINTER] * 4,
        'elsa_backward_filters': [*[_POINTER] * 4, ctypes.c_int64],
        'elsa_backward_value': [_POINTER] * 4,
    },
)


@constant_in_graphs
def why_not() -> str | None:
    """Why the kernel cannot run here, or None. The first call on a machine compiles it."""
    return _KERNELS.why_not()


def _shape(size: torch.Size, rows: Tensor, attn: Tensor, kernel_size: int) -> _Shape:
    return _Shape(*size, attn.shape[3], kernel_size, rows.stride(0), torch.get_num_threads())


def _forward(v: Tensor, attn: Tensor, add: Tensor, kernel_size: int) -> Tensor:
    rows, attn, add = token_rows(v), attn.contiguous(), add.contiguous()
    out = v.new_empty(v.shape)
    shape = _shape(v.shape, rows, attn, kernel_size)
    _KERNELS[v.dtype].elsa_forward(ctypes.byref(shape), *pointers(rows, attn, add, out))
    return out


def _backward(grad: Tensor, v: Tensor, attn: Tensor, add: Tensor, kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    grad, rows, attn, add = grad.contiguous(), token_rows(v), attn.contiguous(), add.contiguous()
    library, shape = _KERNELS[v.dtype], _shape(v.shape, rows, attn, kernel_size)

    grad_v = v.new_empty(v.shape)
    library.elsa_backward_value(ctypes.byref(shape), *pointers(grad, attn, add, grad_v))

    chunks = min(CHUNKS, v.shape[0] * v.shape[1])
    grad_attn = torch.empty_like(attn)
    sums_add = v.new_zeros(chunks, *add.shape)
    library.elsa_backward_filters(ctypes.byref(shape), *pointers(rows, grad, grad_attn, sums_add), chunks)
    return grad_v, grad_attn, sums_add.sum(dim=0)


def _fake_forward(v, attn, add, kernel_size):
    return v.new_empty(v.shape)


def _fake_backward(grad, v, attn, add, kernel_size):
    return v.new_empty(v.shape), attn.new_empty(attn.shape), v.new_empty(add.shape)


_ARGUMENTS = 'Tensor v, Tensor attn, Tensor add, int kernel_size'
register('elsa', f'({_ARGUMENTS}) -> Tensor', _forward, _fake_forward)
register('elsa_backward', f'(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)', _backward, _fake_backward)


class ELSACPU(torch.autograd.Function):
    """The sum over the taps, all in one of float32 and float64.

    `v` [B, H, W, C], `attn` [B, H, W, heads, k*k] and `add` [k*k, C] -> [B, H, W, C].
    """

    @staticmethod
    def forward(ctx, v, attn, add, kernel_size):
        ctx.save_for_backward(v, attn, add)
        ctx.kernel_size = kernel_size
        return torch.ops.mmext_backbones.elsa(v, attn, add, kernel_size)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return *torch.ops.mmext_backbones.elsa_backward(grad, *ctx.saved_tensors, ctx.kernel_size), None


def elsa_cpu(v: Tensor, logits: Tensor, add: Tensor | None, num_heads: int, kernel_size: int) -> Tensor:
    """`ops.elsa` after its checks: `v` [B, C, H, W] and `logits` [B, heads * k * k, H, W] in any memory format, `add`
    [C, k, k] or None -> [B, C, H, W], channels last in memory, in the dtype of `v`. On the meta device any of
    `ops.elsa`'s forms, whose shapes are the same."""
    dtype, taps = torch.promote_types(v.dtype, torch.float32), kernel_size**2
    autocast_off = contextlib.nullcontext() if v.is_meta else torch.autocast(v.device.type, enabled=False)
    with autocast_off:
        attn = logits.to(dtype).permute(0, 2, 3, 1).unflatten(3, (num_heads, taps)).softmax(dim=4)
        # where only shapes are asked for it has no channels, so that nothing is counted for it
        none = attn.new_zeros(taps, 0 if v.is_meta else v.shape[1])
        add = none if add is None else add.to(dtype).flatten(1).mT
        out = ELSACPU.apply(v.to(dtype).permute(0, 2, 3, 1), attn, add, kernel_size)
    return out.permute(0, 3, 1, 2).to(v.dtype)
