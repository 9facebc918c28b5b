"""Layer norm over the channels in one pass over the map a direction, for GPUs; without autograd but for `norm_beside`.

    y = (x - mean) / sqrt(var + eps) * weight + bias        mean and var over the last axis

Under autocast PyTorch norms in float32 and rounds the result in a pass of its own; its backward pass widens the
gradient, norms the map again, and the sum with the gradient past the norm is one more. A kernel in Triton
(`gpu_kernels.py`) reads and writes each map once. On the CPU PyTorch's own norm runs, and this is not asked.
"""

import torch
from torch import Tensor

from .. import gpu_support
from ..backends import choose
from ..derivatives import first_order

__all__ = ['layer_norm', 'layer_norm_backward', 'norm_beside', 'runs_as_kernel']

KERNEL = 'layer_norm'
FORMS = ('gpu', 'torch')
MAX_CHANNELS = 8192  # of a row, which lies in the registers of a program


def runs_as_kernel(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether the norm of a map runs as a kernel in Triton.

    Args:
        x: the map, [..., C].
        dtype: of its output.

    Raises:
        RuntimeError: where MMEXT_BACKEND=gpu asks for it and it cannot run on a GPU.
    """
    return x.is_cuda and choose(KERNEL, 'auto', FORMS, why_not, x, dtype) == 'gpu'


def why_not(form: str, x: Tensor, dtype: torch.dtype) -> str | None:
    """Why a form cannot run, or None."""
    if form == 'torch':
        return None
    if x.shape[-1] > MAX_CHANNELS:
        return f'rows of {x.shape[-1]} channels, at most {MAX_CHANNELS} fit'
    return gpu_support.why_not_rows(KERNEL, x.device, x.dtype, dtype)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, again: bool | None = None
) -> Tensor:
    """The norm of a map by the kernel, where `runs_as_kernel`.

    Args:
        x: [..., C], float32, float16 or bfloat16.
        weight, bias: [C], of any floating type.
        eps: added to the variance.
        dtype: of the output, which is rounded once.
        again: whether the backward pass to come will compute the output again; None: no backward pass follows. Its
            kernel is compiled at once.

    Returns:
        [..., C], contiguous.
    """
    from .gpu import forward

    return forward(x, weight, bias, eps, dtype, again)


def layer_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, eps: float, skip: Tensor | None = None, again: bool = True
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """The gradients of `layer_norm` by the kernel.

    Args:
        grad: of the output, [..., C].
        x, weight, bias, eps: as in `layer_norm`.
        skip: [..., C], a gradient of x from elsewhere, which is added; None: none.
        again: whether the output is computed again.

    Returns:
        The output in the type of `grad`, or None; the gradients of x, weight and bias in their types.
    """
    from .gpu import backward

    return backward(grad, x, weight, bias, eps, skip, again)


def norm_beside(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`layer_norm` of x, differentiable once, and x, for a skip connection: its gradient joins in that of the norm."""
    return _NormBeside.apply(x, weight, bias, eps, dtype, False if torch.is_grad_enabled() else None)


class _NormBeside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype, again):
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return layer_norm(x, weight, bias, eps, dtype, again), x

    @staticmethod
    @first_order
    def backward(ctx, grad, skip):
        _, *grads = layer_norm_backward(grad, *ctx.saved_tensors, ctx.eps, skip, again=False)
        return *grads, None, None, None
