"""GELU and its gradient without autograd, by a kernel where that is faster.

PyTorch's own GELU by tanh takes three times as long on the CPU as the compiled kernel (`cpu.c`), in every type. On GPUs
a kernel in Triton (`gpu_kernels.py`) computes the gradient, the GELU again and the gradient of the bias before it in
one pass over the map, of which PyTorch's operators take three.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import gpu_support
from ..backends import choose
from .cpu import why_not

PART = 2**18  # elements of a narrow type that are widened at a time

aten, compiled = torch.ops.aten, torch.ops.mmext_backbones


def gelu(x: Tensor, approximate: str, inplace: bool = False) -> Tensor:
    """F.gelu, or the same in the place of `x`."""
    if approximate == 'tanh' and x.is_contiguous():
        if why_not(x) is None:
            if not inplace:
                return compiled.norm_gelu(x, None, None, None, None, True)
            compiled.gelu_(x)
            return x
        if _widens(x):
            out = x if inplace else torch.empty_like(x)
            for part, out_part in zip(_parts(x), _parts(out), strict=True):
                wide = part.float()
                compiled.gelu_(wide)
                out_part.copy_(wide)
            return out
    return aten.gelu_(x, approximate=approximate) if inplace else F.gelu(x, approximate=approximate)


def gelu_backward_sum_(
    grad: Tensor, x: Tensor, approximate: str, again: bool = True, sums: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """gelu(x), and the sum over all rows of its gradient; `grad`, of gelu(x), becomes the gradient of x.

    Args:
        grad: [..., C].
        x: [..., C].
        approximate: as of F.gelu.
        again: whether gelu(x) is asked for, else it may be None.
        sums: whether the sum is asked for, [C], else it may be None.
    """
    if runs_as_kernel(grad, x):
        from . import gpu

        return gpu.gelu_backward_sum_(grad, x, approximate, again)
    return gelu_backward_(grad, x, approximate), grad.flatten(0, -2).sum(0) if sums else None


def runs_as_kernel(grad: Tensor, x: Tensor) -> bool:
    """Whether the gradient of a GELU runs as a kernel in Triton.

    Raises:
        RuntimeError: where MMEXT_BACKEND=gpu asks for it and it cannot run on a GPU.
    """
    dense = x.is_cuda and x.is_contiguous() and grad.is_contiguous()
    return dense and choose('gelu', 'auto', ('gpu', 'torch'), _why_not_form, grad, x) == 'gpu'


def _why_not_form(form: str, grad: Tensor, x: Tensor) -> str | None:
    return gpu_support.why_not_rows('gelu', x.device, grad.dtype, x.dtype) if form == 'gpu' else None


def gelu_backward_(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    """gelu(x); `grad`, of that, becomes the gradient of x."""
    if runs_as_kernel(grad, x):
        return gelu_backward_sum_(grad, x, approximate)[0]
    if approximate == 'tanh' and x.is_contiguous() and grad.is_contiguous():
        if why_not(x, grad) is None:
            return compiled.norm_gelu_backward_(grad, x, None, None, None, None, True)[0]
        if _widens(x):
            out = torch.empty_like(x)
            for part, grad_part, out_part in zip(_parts(x), _parts(grad), _parts(out), strict=True):
                wide = grad_part.float()
                y, _ = compiled.norm_gelu_backward_(wide, part.float(), None, None, None, None, True)
                grad_part.copy_(wide)
                out_part.copy_(y)
            return out
    aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=grad)
    return F.gelu(x, approximate=approximate)


def _widens(x: Tensor) -> bool:
    narrow = x.device.type == 'cpu' and x.dtype in (torch.bfloat16, torch.float16) and x.numel() > 0
    return narrow and why_not(torch.empty(1)) is None


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.view(-1).split(PART)
