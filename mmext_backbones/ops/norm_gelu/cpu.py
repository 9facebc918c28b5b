"""Batch norm and GELU on the CPU through a compiled kernel (`cpu.c`), where a C compiler is at hand.

PyTorch's own GELU by tanh takes three times as long as its neighbours in memory, on maps that are the largest of
MaxViT. Maps are [..., C]; the norm is (x - mean) * rstd * weight + bias, one number each a channel, or None for none.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from ..c_kernels import REALS, Kernels, pointers
from ..dispatcher import register

CHUNKS, CHUNK_ROWS = 64, 32  # at most so many chunks of rows, of at least so many rows: each has its own sums


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ('rows', 'channels', 'chunks', 'gelu', 'threads')]


_POINTER = ctypes.c_void_p
_KERNELS = Kernels(
    Path(__file__).with_name('cpu.c'),
    _Shape,
    {
        'norm_gelu': [_POINTER] * 6,
        'norm_gelu_backward': [_POINTER] * 9,
        'norm_backward_input': [_POINTER] * 7,
        'moments': [_POINTER] * 4,
    },
)


def why_not(x: Tensor, *params: Tensor) -> str | None:
    """Why the kernels cannot take these tensors, or None. The first call on a machine compiles them."""
    if not all(tensor.device.type == 'cpu' and tensor.dtype == x.dtype for tensor in (x, *params)):
        return 'it runs on the CPU, on tensors of one type'
    if x.dtype not in REALS:
        return f'it computes in float32 or float64, x is {x.dtype}'
    return 'the map is empty' if x.numel() == 0 else _KERNELS.why_not()


def _call(name: str, x: Tensor, gelu: bool, *tensors: Tensor | None) -> None:
    C = x.shape[-1]
    shape = _Shape(x.numel() // C, C, _chunks(x), gelu, torch.get_num_threads())
    getattr(_KERNELS[x.dtype], name)(ctypes.byref(shape), *pointers(*tensors))


def _chunks(x: Tensor) -> int:
    return max(1, min(CHUNKS, x.numel() // x.shape[-1] // CHUNK_ROWS))


def _sums(x: Tensor) -> Tensor:
    return x.new_empty(_chunks(x), 2, x.shape[-1])


def _norm_gelu(x, mean, rstd, weight, bias, gelu):
    x = x.contiguous()
    out = torch.empty_like(x)
    _call('norm_gelu', x, gelu, x, mean, rstd, weight, bias, out)
    return out


def _gelu_(x):
    _call('norm_gelu', x, True, x, None, None, None, None, x)


def _norm_gelu_backward_(grad, x, mean, rstd, weight, bias, gelu):
    x = x.contiguous()
    y, sums = torch.empty_like(x), x.new_empty(1, 0) if mean is None else _sums(x)
    _call('norm_gelu_backward', x, gelu, grad, x, mean, rstd, weight, bias, y, grad, sums)
    return y, sums[0].clone()


def _norm_backward_input_(grad, x, mean, rstd, weight, sums):
    _call('norm_backward_input', x, False, grad, x.contiguous(), mean, rstd, weight, sums, grad)


def _moments(x):
    x, mean, var = x.contiguous(), x.new_empty(x.shape[-1]), x.new_empty(x.shape[-1])
    _call('moments', x, False, x, _sums(x), mean, var)
    return mean, var


_NORM = 'Tensor x, Tensor? mean, Tensor? rstd, Tensor? weight, Tensor? bias, bool gelu'
register('norm_gelu', f'({_NORM}) -> Tensor', _norm_gelu, lambda x, *_: x.new_empty(x.shape))
register('gelu_', '(Tensor(a!) x) -> ()', _gelu_, lambda x: None)
register(  # y again; `grad` becomes that of z; sums over rows of it, and of it times x - mean
    'norm_gelu_backward_',
    f'(Tensor(a!) grad, {_NORM}) -> (Tensor, Tensor)',
    _norm_gelu_backward_,
    lambda grad, x, mean, *_: (x.new_empty(x.shape), x.new_empty(0 if mean is None else (2, x.shape[-1]))),
)
register(  # `grad` of z becomes that of x, of which mean and rstd were made
    'norm_backward_input_',
    '(Tensor(a!) grad, Tensor x, Tensor mean, Tensor rstd, Tensor weight, Tensor sums) -> ()',
    _norm_backward_input_,
    lambda *_: None,
)
register('moments', '(Tensor x) -> (Tensor, Tensor)', _moments, lambda x: (x.new_empty(x.shape[-1]),) * 2)
