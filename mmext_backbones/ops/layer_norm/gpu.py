"""The launches of the layer norm's kernels (`gpu_kernels.py`), and the operators of the dispatcher that they are.

The number of programs follows from shapes and GPU: the same inputs give the same bits. Triton is imported at the first
use. In its interpreter (TRITON_INTERPRET=1 before that) the kernels run on the CPU.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..backends import is_named
from ..caching import load_once
from ..dispatcher import register
from ..gpu_compiling import can_compile_ahead, compile_ahead, launch
from ..gpu_support import power_of_two, runs_of
from ..self_check import Launcher, checked
from ..triton_start import call, or_in_torch

KERNEL = 'layer_norm'
ELEMENTS = 2048  # of a program's block, 16 in a thread; wider rows take more warps
LEAST = 16  # channels of a block

aten = torch.ops.aten


@load_once
def kernels() -> ModuleType:
    """The module of the kernels, which needs Triton."""
    from . import gpu_kernels

    return gpu_kernels


def options_of(C: int) -> dict[str, int]:
    """What the kernels are compiled for."""
    block = max(LEAST, power_of_two(C))
    return {'ROWS': max(1, ELEMENTS // block), 'BLOCK': block, 'num_warps': max(4, block * 4 // ELEMENTS)}


def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    rows, C = x.shape
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    y = torch.empty_like(x, dtype=dtype)
    options = options_of(C)
    with torch.cuda.device_of(x):
        grid = (-(-rows // options['ROWS']) or 1,)
        launch(kernels().forward, grid, (x, weight, bias, y), (rows, C, eps), options)
    return y


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, eps: float, again: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, C = x.shape
    grad, x, weight, bias = (each.contiguous() for each in (grad, x, weight, bias))
    skip = None if skip is None else skip.contiguous()
    y, grad_x = torch.empty_like(grad) if again else None, torch.empty_like(x)
    options = options_of(C)
    programs, run = runs_of(-(-rows // options['ROWS']), x.device)
    sums = torch.empty(programs, 2, C, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        tensors = grad, x, weight, bias, skip, y, grad_x, sums
        launch(kernels().backward, (programs,), tensors, (rows, run, C, eps), options)
    grad_weight, grad_bias = sums.sum(dim=0)
    y = grad.new_empty(0) if y is None else y
    return y, grad_x, grad_weight.to(weight.dtype, copy=True), grad_bias.to(bias.dtype, copy=True)


def _forward_in_torch(x, weight, bias, eps, dtype):
    return _norm(x, weight, bias, eps)[0].to(dtype)


def _backward_in_torch(grad, x, weight, bias, skip, eps, again):
    y, mean, rstd, wide, params = _norm(x, weight, bias, eps)
    grads = aten.native_layer_norm_backward(grad.to(wide.dtype), wide, x.shape[-1:], mean, rstd, *params, [True] * 3)
    grad_x = grads[0] if skip is None else grads[0] + skip
    y = y.to(grad.dtype) if again else grad.new_empty(0)
    return y, grad_x.to(x.dtype), grads[1].to(weight.dtype), grads[2].to(bias.dtype)


def _norm(x, weight, bias, eps):
    """By PyTorch, in one type that is at least float32."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, *params = (each.to(wide) for each in (x, weight, bias))
    return *aten.native_layer_norm(x, x.shape[-1:], *params, eps), x, params


def _kind(x, weight, bias, eps, dtype) -> tuple:
    """What of the arguments the kernels are compiled for."""
    return x.shape[-1], weight.dtype, bias.dtype, dtype


def _sample(x, weight, bias, eps, dtype) -> tuple:
    """Random arguments of the same kind on the CPU, for an odd number of rows and several programs."""
    C = x.shape[-1]
    rows = 5 * options_of(C)['ROWS'] + 3
    return _random(x, rows, C), _random(weight, C), _random(bias, C), eps, dtype


def _random(like: Tensor, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float32, device='cpu').to(like.dtype)


def _backward_kind(grad, x, weight, bias, skip, eps, again) -> tuple:
    return *_kind(x, weight, bias, eps, x.dtype), None if skip is None else skip.dtype, again


def _backward_sample(grad, x, weight, bias, skip, eps, again) -> tuple:
    x, weight, bias, eps, _ = _sample(x, weight, bias, eps, x.dtype)
    wave = torch.cos(3 * x.float())
    return wave.to(grad.dtype), x, weight, bias, None if skip is None else wave.to(skip.dtype), eps, again


def _fake_forward(x, weight, bias, eps, dtype):
    return x.new_empty(x.shape, dtype=dtype)


def _fake_backward(grad, x, weight, bias, skip, eps, again):
    y = grad.new_empty(grad.shape if again else 0)
    return y, x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


_DEVICES = 'CUDA', 'CPU'  # the latter for the interpreter
FORWARD = Launcher(KERNEL, _forward, _forward_in_torch, _kind, _sample, ('the map',))
_GRADIENTS = 'the map again', 'the gradient of x', 'the gradient of weight', 'the gradient of bias'
BACKWARD = Launcher(KERNEL, _backward, _backward_in_torch, _backward_kind, _backward_sample, _GRADIENTS)
register(
    'layer_norm',
    '(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> Tensor',
    or_in_torch(checked(FORWARD), _forward_in_torch),
    _fake_forward,
    _DEVICES,
)
register(
    'layer_norm_backward',
    '(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? skip, float eps, bool again) '
    '-> (Tensor, Tensor, Tensor, Tensor)',
    or_in_torch(checked(BACKWARD), _backward_in_torch),
    _fake_backward,
    _DEVICES,
)


def _compile_ahead(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype, again: bool | None) -> None:
    """Compiles what follows in a network: the gradients, with that of a skip connection and without."""

    def run() -> None:
        y = _forward(x[:0], weight, bias, 1.0, dtype)
        for skip in (None, x[:0]) if again is not None else ():
            _backward(y, x[:0], weight, bias, skip, 1.0, again)

    channels = options_of(x.shape[-1])['BLOCK'], x.shape[-1] % 16 == 0
    compile_ahead(KERNEL, (x.device, x.dtype, weight.dtype, dtype, *channels, again), run)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, again: bool | None = None
) -> Tensor:
    """`layer_norm`, on any device that the kernels run on."""
    rows = x.reshape(-1, x.shape[-1])
    if can_compile_ahead(x):
        _compile_ahead(rows, weight, bias, dtype, again)
    operator = torch.ops.mmext_backbones.layer_norm
    return call(operator, is_named('gpu', KERNEL, 'auto'), rows, weight, bias, eps, dtype).view(x.shape)


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, skip: Tensor | None = None, again: bool = True
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """`layer_norm_backward`, on any device that the kernels run on."""
    grad, rows, skip = (None if each is None else each.reshape(-1, x.shape[-1]) for each in (grad, x, skip))
    operator = torch.ops.mmext_backbones.layer_norm_backward
    found = call(operator, is_named('gpu', KERNEL, 'auto'), grad, rows, weight, bias, skip, eps, again)
    y, grad_x, grad_weight, grad_bias = found
    return y.view(x.shape) if again else None, grad_x.view(x.shape), grad_weight, grad_bias
