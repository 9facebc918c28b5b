"""The launch of the kernel of GELU's gradient (`gpu_kernels.py`), and the operator of the dispatcher that it is.

The number of programs follows from shapes and GPU: the same inputs give the same bits. Triton is imported at the first
use. In its interpreter (TRITON_INTERPRET=1 before that) the kernel runs on the CPU.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..backends import is_named
from ..caching import load_once
from ..dispatcher import register
from ..gpu_compiling import launch
from ..gpu_support import runs_of
from ..self_check import Launcher, checked
from ..triton_start import call, or_in_torch

KERNEL = 'gelu'
OPTIONS = {'ROWS': 16, 'BLOCK': 128, 'num_warps': 4}  # 16 elements in a thread

aten = torch.ops.aten


@load_once
def kernels() -> ModuleType:
    """The module of the kernel, which needs Triton."""
    from . import gpu_kernels

    return gpu_kernels


def _backward(grad: Tensor, x: Tensor, tanh: bool, again: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, C = x.shape
    y = torch.empty_like(x) if again else None
    blocks = -(-C // OPTIONS['BLOCK'])
    runs, run = runs_of(-(-rows // OPTIONS['ROWS']), x.device, blocks)
    sums = torch.empty(runs, C, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        tensors, options = (grad, x, y, sums), OPTIONS | {'TANH': tanh}
        launch(kernels().backward, (blocks, runs), tensors, (rows, run, C), options)
    return x.new_empty(0) if y is None else y, grad, sums.sum(dim=0)


def _in_torch(grad, x, tanh, again):
    approximate = 'tanh' if tanh else 'none'
    grad.copy_(aten.gelu_backward(grad.to(x.dtype), x, approximate=approximate))
    y = aten.gelu(x, approximate=approximate) if again else x.new_empty(0)
    return y, grad, grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))


def _kind(grad, x, tanh, again) -> tuple:
    """What of the arguments the kernel is compiled for."""
    return x.dtype, x.shape[-1] % 16 == 0, x.shape[-1] == 1, tanh, again


def _sample(grad, x, tanh, again) -> tuple:
    """Random arguments of the same kind on the CPU, for an odd number of rows and several programs."""
    C = 1 if x.shape[-1] == 1 else 144 if x.shape[-1] % 16 == 0 else 145
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(133, C, generator=generator, dtype=torch.float32, device='cpu')
    return torch.cos(3 * wide).to(grad.dtype), wide.to(x.dtype), tanh, again


def _fake(grad, x, tanh, again):
    return x.new_empty(x.shape if again else 0), grad.new_empty(x.shape[-1], dtype=torch.float32)


BACKWARD = Launcher(KERNEL, _backward, _in_torch, _kind, _sample, ('the map again', 'the gradient of x', 'its sum'))
_run = or_in_torch(checked(BACKWARD), _in_torch)


def _operator(grad: Tensor, x: Tensor, tanh: bool, again: bool) -> tuple[Tensor, Tensor]:
    y, _, total = _run(grad, x, tanh, again)
    return y, total


register(
    'gelu_backward_sum_',
    '(Tensor(a!) grad, Tensor x, bool tanh, bool again) -> (Tensor, Tensor)',
    _operator,
    _fake,
    ('CUDA', 'CPU'),  # the latter for the interpreter
)


def gelu_backward_sum_(grad: Tensor, x: Tensor, approximate: str, again: bool = True) -> tuple[Tensor | None, Tensor]:
    """`norm_gelu.gelu_backward_sum_` by the kernel, on any device that it runs on. The sum is float32."""
    operator, by_name = torch.ops.mmext_backbones.gelu_backward_sum_, is_named('gpu', KERNEL, 'auto')
    C = x.shape[-1]
    y, total = call(operator, by_name, grad.view(-1, C), x.view(-1, C), approximate == 'tanh', again)
    return y.view(x.shape) if again else None, total
