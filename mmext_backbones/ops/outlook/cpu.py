"""Outlook attention on the CPU through a compiled kernel (`cpu.c`), where a C compiler is at hand.

Layout [B, H, W, C], as between the blocks; formula and gradients as written in the C file.
"""

import contextlib
import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ..c_kernels import Kernels, pointers, token_rows
from ..derivatives import first_order
from ..dispatcher import constant_in_graphs, register


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            'batch', 'height', 'width', 'channels', 'heads', 'kernel_size', 'stride', 'v_stride', 'threads'
        )
    ]  # fmt: skip


_KERNELS = Kernels(
    Path(__file__).with_name('cpu.c'),
    _Shape,
    {
        'outlook_forward': [ctypes.c_void_p] * 3,
        'outlook_backward_value': [ctypes.c_void_p] * 3,
        'outlook_backward_weights': [ctypes.c_void_p] * 3,
    },
)


@constant_in_graphs
def why_not() -> str | None:
    """Why the kernel cannot run here, or None. The first call on a machine compiles it."""
    return _KERNELS.why_not()


def _shape(size: torch.Size, rows: Tensor, attn: Tensor, kernel_size: int, stride: int) -> _Shape:
    return _Shape(*size, attn.shape[3], kernel_size, stride, rows.stride(0), torch.get_num_threads())


def _forward(v: Tensor, attn: Tensor, kernel_size: int, stride: int) -> Tensor:
    rows, attn = token_rows(v), attn.contiguous()
    out = v.new_empty(v.shape)
    shape = _shape(v.shape, rows, attn, kernel_size, stride)
    _KERNELS[v.dtype].outlook_forward(ctypes.byref(shape), *pointers(rows, attn, out))
    return out


def _backward(grad: Tensor, v: Tensor, attn: Tensor, kernel_size: int, stride: int) -> tuple[Tensor, Tensor]:
    grad, rows, attn = grad.contiguous(), token_rows(v), attn.contiguous()
    library, shape = _KERNELS[v.dtype], _shape(v.shape, rows, attn, kernel_size, stride)
    grad_v, grad_attn = v.new_empty(v.shape), torch.empty_like(attn)
    library.outlook_backward_value(ctypes.byref(shape), *pointers(grad, attn, grad_v))
    library.outlook_backward_weights(ctypes.byref(shape), *pointers(grad, rows, grad_attn))
    return grad_v, grad_attn


def _fake_forward(v, attn, kernel_size, stride):
    return v.new_empty(v.shape)


def _fake_backward(grad, v, attn, kernel_size, stride):
    return v.new_empty(v.shape), attn.new_empty(attn.shape)


_ARGUMENTS = 'Tensor v, Tensor attn, int kernel_size, int stride'
register('outlook', f'({_ARGUMENTS}) -> Tensor', _forward, _fake_forward)
register('outlook_backward', f'(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor)', _backward, _fake_backward)


class OutlookCPU(torch.autograd.Function):
    """v [B, H, W, C] and attn [B, h, w, heads, places, places], both float32 or float64 -> [B, H, W, C]."""

    @staticmethod
    def forward(ctx, v, attn, kernel_size, stride):
        ctx.save_for_backward(v, attn)
        ctx.geometry = kernel_size, stride
        return torch.ops.mmext_backbones.outlook(v, attn, kernel_size, stride)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return *torch.ops.mmext_backbones.outlook_backward(grad, *ctx.saved_tensors, *ctx.geometry), None, None


def outlook_cpu(v: Tensor, attn: Tensor, kernel_size: int, stride: int) -> Tensor:
    """`ops.outlook` after its checks and softmax, in float32 at least, in the dtype of `v`."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    autocast_off = contextlib.nullcontext() if v.is_meta else torch.autocast(v.device.type, enabled=False)
    with autocast_off:
        return OutlookCPU.apply(v.to(dtype), attn.to(dtype), kernel_size, stride).to(v.dtype)
