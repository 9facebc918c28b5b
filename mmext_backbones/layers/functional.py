"""From modules to functions on their weights."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from mmext_backbones.ops.recompute import BatchNorm, LayerNorm, Linear, recompute
from mmext_backbones.ops.torch_versions import is_autocast_enabled, is_compiling

from .conv import FilterConv2d, SameConv2d

# module without children -> whether a function of ours can stand for this one
FUNCTIONAL: dict[type[nn.Module], Callable[[nn.Module], bool]] = {
    nn.Linear: lambda linear: True,
    SameConv2d: lambda conv: True,
    FilterConv2d: lambda conv: True,
    nn.GELU: lambda gelu: True,
    nn.LayerNorm: lambda norm: norm.weight is not None and norm.bias is not None,
    nn.BatchNorm2d: lambda norm: norm.affine and norm.track_running_stats and norm.momentum is not None,
    nn.Dropout: lambda drop: drop.p == 0.0 or not drop.training,
}


def can_fuse(*modules: nn.Module) -> bool:
    """Whether functions on the weights of these modules may stand for calls of them.

    Not where it could be noticed: for modules of other classes (synchronised norms, adapters, parametrised weights),
    under hooks, and while the network is recorded (by compilers, exporters, tracers, function transforms).
    """
    return is_unobserved(*modules) and all(map(_functional, modules))


def is_unobserved(*modules: nn.Module) -> bool:
    """Whether nobody hears what calls of these modules take and return: no hooks, and nothing records the network."""
    if is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    if torch_modules._global_forward_pre_hooks or torch_modules._global_forward_hooks:
        return False
    return not torch_modules._global_backward_hooks and not any(map(_hooked, modules))


def _hooked(module: nn.Module) -> bool:
    own = module.__dict__
    return bool(
        own['_forward_pre_hooks'] or own['_forward_hooks'] or own['_backward_pre_hooks'] or own['_backward_hooks']
    )


def _functional(module: nn.Module) -> bool:
    if _hooked(module):
        return False
    own = module.__dict__
    if own['_modules']:
        return all(map(_functional, own['_modules'].values()))
    known = FUNCTIONAL.get(type(module))
    return known is not None and 'forward' not in own and known(module)


def batch_norm_call(norm: nn.BatchNorm2d, gelu: bool = False) -> BatchNorm:
    """A call of a batch norm, counted as such, as a function of [B, H, W, C]; a GELU by tanh may follow."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return BatchNorm(norm.running_mean, norm.running_var, norm.training, norm.momentum, norm.eps, gelu)


def can_fold_norms(*norms: nn.BatchNorm2d) -> bool:
    """Whether batch norms may be part of the convolutions beside them: by running statistics, without a gradient."""
    return not torch.is_grad_enabled() and not any(norm.training for norm in norms)


def norm_then_linear(x: Tensor, norm: nn.LayerNorm | None, linear: nn.Linear) -> Tensor:
    """linear(norm(x)), of which x alone is kept for the backward pass; linear(x) without a norm."""
    if norm is None:
        return linear(x)
    if not can_fuse(norm, linear):
        return linear(norm(x))
    return recompute(LayerNorm(norm.eps), Linear(), x, linear.weight, linear.bias, norm.weight, norm.bias)


def linear_add(x: Tensor, linear: nn.Linear, skip: Tensor | None = None, drop: nn.Module | None = None) -> Tensor:
    """drop(linear(x)), or skip plus that: [..., C].

    Without dropout the product is added to skip and the bias; without a gradient in place, which spares a pass.
    """
    parts = [linear] if drop is None else [linear, drop]
    narrow = not x.is_meta and is_autocast_enabled(x.device.type)
    if skip is None or narrow or skip.dtype != x.dtype or linear.bias is None or not can_fuse(*parts):
        for part in parts:
            x = part(x)
        return x if skip is None else skip + x
    total = (skip + linear.bias).flatten(0, -2)
    # not addmm_, which counters of operations do not know
    out = torch.addmm(total, x.flatten(0, -2), linear.weight.mT, out=None if torch.is_grad_enabled() else total)
    return out.view(skip.shape)
