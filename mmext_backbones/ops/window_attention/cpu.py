"""Window and grid attention on the CPU through a compiled kernel (`cpu.c`), where a C compiler is at
hand; accumulation and gradients as written in the C file."""

import ctypes
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..c_kernels import Kernels, pointers, token_rows
from ..dispatcher import constant_in_graphs
from ..partition import Size
from .autograd import WindowAttentionFunction, register_window_attention
from .reference import MASKED

CHUNKS, CHUNK = 32, 4  # at most so many chunks of so many windows or more have sums of their own for bias and padding
STEP = 16  # rows of the bias and of scratch matrices are padded to multiples of so many elements
STORAGES = {torch.float32: 0, torch.float64: 0, torch.bfloat16: 1, torch.float16: 2}


class _Shape(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in (
                'batch', 'height', 'width', 'channels', 'heads', 'window_h', 'window_w', 'shift', 'grid', 'qkv_stride',
                'storage', 'chunks', 'threads', 'bias_rows',
            )
        ),
        ('scale', ctypes.c_double),
    ]  # fmt: skip


_KERNELS = Kernels(
    Path(__file__).with_name('cpu.c'),
    _Shape,
    {
        'window_attention_forward': [ctypes.c_void_p] * 4,
        'window_attention_backward': [ctypes.c_void_p] * 7,
    },
    MASKED=MASKED,
    STEP=STEP,
)


@constant_in_graphs
def why_not() -> str | None:
    """Why the kernel cannot run here, or None. The first call on a machine compiles it."""
    return _KERNELS.why_not()


def _computed(dtype: torch.dtype) -> torch.dtype:
    """The type of the arithmetic, and of bias and padding, for a map of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def _shape(
    size: torch.Size,
    rows: Tensor,
    bias: Tensor,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
) -> _Shape:
    (B, H, W, C3), (h, w) = size, window_size
    chunks = min(CHUNKS, -(-B * -(-H // h) * -(-W // w) // CHUNK))
    storage, threads = STORAGES[rows.dtype], torch.get_num_threads()
    shape = (B, H, W, C3 // 3, num_heads, h, w, shift_size, grid, rows.stride(0), storage, chunks, threads)
    return _Shape(*shape, bias.shape[1], scale)


def _padded(bias: Tensor) -> Tensor:
    """Keys up to a multiple of STEP, of no weight: the kernel knows no rest of a vector."""
    return F.pad(bias, (0, -bias.shape[2] % STEP), value=float('-inf')).contiguous()


def _forward(
    qkv: Tensor,
    bias: Tensor,
    padding: Tensor | None,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
) -> Tensor:
    B, H, W, C3 = qkv.shape
    rows, bias = token_rows(qkv), _padded(bias)
    padding = None if padding is None else padding.contiguous()
    out = qkv.new_empty(B, H, W, C3 // 3)
    shape = _shape(qkv.shape, rows, bias, num_heads, window_size, scale, shift_size, grid)
    library = _KERNELS[_computed(qkv.dtype)]
    library.window_attention_forward(ctypes.byref(shape), *pointers(rows, bias, padding, out))
    return out


def _backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor,
    padding: Tensor | None,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    N = bias.shape[2]
    grad, rows, bias = grad.contiguous(), token_rows(qkv), _padded(bias)
    padding = None if padding is None else padding.contiguous()
    shape = _shape(qkv.shape, rows, bias, num_heads, window_size, scale, shift_size, grid)
    grad_qkv = qkv.new_empty(qkv.shape)
    sums_bias = bias.new_zeros(shape.chunks, *bias.shape)
    sums_padding = None if padding is None else padding.new_zeros(shape.chunks, *padding.shape)
    library = _KERNELS[_computed(qkv.dtype)]
    arguments = pointers(grad, rows, bias, padding, grad_qkv, sums_bias, sums_padding)
    library.window_attention_backward(ctypes.byref(shape), *arguments)
    grad_padding = bias.new_empty(0) if padding is None else sums_padding.sum(dim=0)
    return grad_qkv, sums_bias.sum(dim=0)[..., :N].contiguous(), grad_padding


register_window_attention('window_attention', _forward, _backward, ('CPU',))


def window_attention_cpu(
    qkv: Tensor,
    bias: Tensor,
    *,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
    padding: Tensor | None,
) -> Tensor:
    """`ops.window_attention` after its checks."""
    dtype = _computed(qkv.dtype)
    if padding is not None:
        padding = padding.to(qkv.dtype).to(dtype)  # rounded as the tokens of the map are
    options = num_heads, tuple(window_size), scale, shift_size, grid
    return WindowAttentionFunction.apply('window_attention', False, qkv, bias.to(dtype), padding, *options)
