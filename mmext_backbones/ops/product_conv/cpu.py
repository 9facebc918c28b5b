"""The grouped convolution of a product on the CPU through a compiled kernel (`cpu.c`), where a C compiler
is at hand; layout, accumulation and gradients as written in the C file."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ..c_kernels import Kernels, pointers, token_rows
from ..derivatives import first_order
from ..dispatcher import constant_in_graphs, register

GROUPS, KERNEL_SIZE = (4, 8), (7, 7)  # what the kernel is written for: every published ELSA-Swin


class _Shape(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in ('batch', 'height', 'width', 'channels', 'group', 'q_stride', 'k_stride', 'threads')
    ]


_KERNELS = Kernels(
    Path(__file__).with_name('cpu.c'),
    _Shape,
    {'product_conv': [ctypes.c_void_p] * 5, 'product_conv_backward': [ctypes.c_void_p] * 8},
)


@constant_in_graphs
def why_not() -> str | None:
    """Why the kernel cannot run here, or None. The first call on a machine compiles it."""
    return _KERNELS.why_not()


def _shape(q: Tensor, q_rows: Tensor, k_rows: Tensor, weight: Tensor) -> _Shape:
    return _Shape(*q.shape, weight.shape[1], q_rows.stride(0), k_rows.stride(0), torch.get_num_threads())


def _forward(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    q_rows, k_rows, weight = token_rows(q), token_rows(k), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = q.new_empty(q.shape)
    shape = _shape(q, q_rows, k_rows, weight)
    _KERNELS[q.dtype].product_conv(ctypes.byref(shape), *pointers(q_rows, k_rows, weight, bias, out))
    return out


def _backward(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad, q_rows, k_rows, weight = grad.contiguous(), token_rows(q), token_rows(k), weight.contiguous()
    grads = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(weight.shape), q.new_empty(q.shape[3])
    shape = _shape(q, q_rows, k_rows, weight)
    arguments = pointers(grad, q_rows, k_rows, weight, *grads)
    _KERNELS[q.dtype].product_conv_backward(ctypes.byref(shape), *arguments)
    return grads


def _fake_backward(grad, q, k, weight):
    return q.new_empty(q.shape), q.new_empty(q.shape), weight.new_empty(weight.shape), q.new_empty(q.shape[3])


_MAPS = 'Tensor q, Tensor k, Tensor weight'
register('product_conv', f'({_MAPS}, Tensor? bias) -> Tensor', _forward, lambda q, *_: q.new_empty(q.shape))
register(  # the gradients of q, k, weight and a bias
    'product_conv_backward',
    f'(Tensor grad, {_MAPS}) -> (Tensor, Tensor, Tensor, Tensor)',
    _backward,
    _fake_backward,
)


class ProductConvCPU(torch.autograd.Function):
    """`ops.product_conv` after its checks, all in one of float32 and float64."""

    @staticmethod
    def forward(ctx, q, k, weight, bias):
        ctx.save_for_backward(q, k, weight)
        ctx.has_bias = bias is not None
        return torch.ops.mmext_backbones.product_conv(q, k, weight, bias)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        *grads, grad_bias = torch.ops.mmext_backbones.product_conv_backward(grad, *ctx.saved_tensors)
        return *grads, grad_bias if ctx.has_bias else None
