"""Which derivatives the kernels and the recomputing functions have: first ones, by a backward pass.

Second derivatives, function transforms (torch.func) and forward-mode derivatives are those of the reference forms.
`torch.autograd.function.once_differentiable` cuts the graph where a second derivative would pass, and answers
`torch.autograd.grad` with other numbers, in silence; what is here raises an error.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .torch_versions import is_compiling

SECOND = (
    'the fast forms of the operators have first derivatives only, and this backward pass is to be differentiated '
    '(create_graph=True, functional.hvp, jvp or hessian, a penalty on gradients): set the environment variable '
    'MMEXT_BACKEND=reference, which has derivatives of every order'
)
BATCHED = (
    'the fast forms of the operators take one gradient at a time: vectorize=False, is_grads_batched=False, or set the '
    'environment variable MMEXT_BACKEND=reference'
)
TRANSFORMED = (
    'it has no function transforms (torch.func) and no forward-mode derivatives; '
    "backend='reference' (MMEXT_BACKEND=reference) has them"
)


def first_order(backward: Callable) -> Callable:
    """Marks the backward pass of an autograd.Function that is itself not differentiable.

    Raises:
        RuntimeError: on a backward pass that is recorded to be differentiated, or that takes a batch of gradients.
    """

    @functools.wraps(backward)
    def run(ctx, *grads: Tensor):
        if not is_compiling():  # whose graphs refuse second derivatives themselves
            if torch.is_grad_enabled():
                raise RuntimeError(SECOND)
            if any(map(_is_batched, grads)):
                raise RuntimeError(BATCHED)
        return backward(ctx, *grads)

    return run


def with_first_order(x: Tensor) -> Tensor:
    """A tensor as it is, whose backward pass refuses what `first_order` refuses: for fast forms of PyTorch's own."""
    return _FirstOrder.apply(x)


class _FirstOrder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        return grad


def is_transformed() -> bool:
    """Whether derivatives are taken by a function transform or in forward mode, or samples are batched by vmap."""
    return not is_compiling() and (torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0)


def _is_batched(x: Tensor | None) -> bool:
    functorch = torch._C._functorch
    return x is not None and (functorch.is_batchedtensor(x) or functorch.is_legacy_batchedtensor(x))
