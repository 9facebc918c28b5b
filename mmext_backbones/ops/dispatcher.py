"""Registers our kernels with PyTorch's dispatcher: compilers, exporters and counters see each as one node.

`torch.library.custom_op` and `triton_op` would do the same, but their first call imports 100 MB of compiler.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from .torch_versions import register_fake

Function = TypeVar('Function', bound=Callable)

_LIBRARY = torch.library.Library('mmext_backbones', 'FRAGMENT')


def register(
    name: str, schema: str, function: Callable, fake: Callable[..., Any], devices: Sequence[str] = ('CPU',)
) -> None:
    """Makes `torch.ops.mmext_backbones.<name>`.

    Args:
        name: of the operator.
        schema: its arguments and results in the language of the dispatcher, from the opening bracket on.
        function: what computes it.
        fake: what returns tensors of its results' shapes and types, for tensors without data.
        devices: dispatch keys that `function` serves.
    """
    _LIBRARY.define(name + schema)
    for device in devices:
        _LIBRARY.impl(name, function, device)
    _LIBRARY.impl(name, torch.library.fallthrough_kernel, 'Autograd')  # so that `gradients` works inside
    register_fake(name, fake, _LIBRARY)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad: Tensor) -> list[Tensor | None]:
    """The gradients of function(*inputs), given that of its output, by autograd; None for an input that is None.

    For operators whose backward pass is that of other operators.
    """
    with torch.enable_grad():
        leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
        out = function(*leaves)
    found = iter(torch.autograd.grad(out, [x for x in leaves if x is not None], grad.to(out.dtype), allow_unused=True))
    grads = [None if x is None else next(found) for x in leaves]
    return [torch.zeros_like(x) if g is None and x is not None else g for x, g in zip(leaves, grads, strict=True)]


def constant_in_graphs(function: Function) -> Function:
    """Marks a function whose answer traced code takes as it is, instead of looking inside.

    It sets what `torch.compiler.assume_constant_result` sets, without the compiler which that imports. The name of its
    code becomes one that no module has: torch 2.1 to 2.4 keep the answer among the globals of the traced module under
    that name, where it would stand in place of the function.
    """
    function._dynamo_marked_constant = True
    function.__code__ = function.__code__.replace(co_name=f'{function.__name__}_in_graphs')
    return function
