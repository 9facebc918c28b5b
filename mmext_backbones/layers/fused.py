"""Fused forms of the forwards in `layers`: the same function of the same weights, with fewer maps kept and passed over.

A forward in `layers` calls its modules one after another, as in the paper. Its fused form, here, takes their weights
instead and gives them to the operators of `ops`: a norm joins the product behind it, a sum the product before it. A
forward names its form in a decorator: `by` where the form runs in place of the forward, `in_block_by` where a
`TransformerBlock` runs it, together with the norm before the branch and the sum behind it. `can_fuse` says whether a
form may run; where it may not, the plain forward does.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmext_backbones.ops import product_conv
from mmext_backbones.ops.backends import from_environment
from mmext_backbones.ops.bilstm2d.torch_lstm import lstm_dtype
from mmext_backbones.ops.conv import conv2d
from mmext_backbones.ops.derivatives import is_transformed
from mmext_backbones.ops.layer_norm import norm_beside, runs_as_kernel
from mmext_backbones.ops.mlp import norm_mlp
from mmext_backbones.ops.norm_gelu import gelu
from mmext_backbones.ops.recompute import (
    BatchNorm,
    Conv,
    GatedBatchNorm,
    LayerNorm,
    Linear,
    Prologue,
    product_dtype,
    recompute,
    squeeze_excite_gate,
)
from mmext_backbones.ops.torch_versions import is_autocast_enabled, is_compiling

from .conv import FilterConv2d, SameConv2d
from .drop_path import DropPath
from .squeeze_excite import SqueezeExcite

Method = TypeVar('Method', bound=Callable[..., Tensor])

# ---------------------------------------------------------------------------------------------------------------------
# Whether a fused form may run

# class, exactly -> whether functions on the weights of a module of it may stand for calls of it
FUSIBLE: dict[type[nn.Module], Callable[[nn.Module], bool]] = {
    nn.Linear: lambda linear: True,
    SameConv2d: lambda conv: True,
    FilterConv2d: lambda conv: conv.dilation == (1, 1),
    SqueezeExcite: lambda gate: True,
    nn.GELU: lambda gelu: True,
    nn.ReLU: lambda relu: True,
    nn.LayerNorm: lambda norm: norm.weight is not None and norm.bias is not None,
    nn.BatchNorm2d: lambda norm: norm.affine and norm.track_running_stats and norm.momentum is not None,
    nn.Dropout: lambda drop: drop.p == 0.0 or not drop.training,
    DropPath: lambda drop_path: not drop_path.active,
}


def can_fuse(*modules: nn.Module) -> bool:
    """True if functions on the weights of these modules, and of what is inside them, may stand for calls of them.

    False for modules of other classes than `FUSIBLE` has (subclasses, synchronised norms, adapters, parametrised
    weights), where calls are observed (`is_unobserved`), and with MMEXT_BACKEND=reference, for second derivatives.
    """
    return is_unobserved(*modules) and from_environment() != 'reference' and all(map(_is_fusible, modules))


def is_unobserved(*modules: nn.Module) -> bool:
    """True if no hook, tracer, compiler, exporter or function transform observes calls of these modules.

    What is inside the modules is not looked at. A forward set on the module itself, and `nn.Module.compile`, count as
    hooks. Forward-mode derivatives count as a function transform.
    """
    if is_compiling() or torch.jit.is_tracing() or is_transformed():
        return False
    return not has_hooks(*modules)


def has_hooks(*modules: nn.Module) -> bool:
    """True if hooks observe calls of these modules: their own, or those of all modules. False while compiling."""
    if is_compiling():
        return False
    if torch_modules._global_forward_pre_hooks or torch_modules._global_forward_hooks:
        return True
    if torch_modules._global_backward_pre_hooks or torch_modules._global_backward_hooks:
        return True
    return any(map(_is_hooked, modules))


def _is_hooked(module: nn.Module) -> bool:
    own = module.__dict__
    hooks = own['_forward_pre_hooks'] or own['_forward_hooks'] or own['_backward_pre_hooks'] or own['_backward_hooks']
    return bool(hooks) or 'forward' in own or own.get('_compiled_call_impl') is not None


def _is_fusible(module: nn.Module) -> bool:
    rule = FUSIBLE.get(type(module))
    if rule is None or not rule(module):
        return False
    children = module.__dict__['_modules'].values()
    return not any(map(_is_hooked, children)) and all(map(_is_fusible, children))


# ---------------------------------------------------------------------------------------------------------------------
# Whether forms may recompute

_RECOMPUTE = ContextVar('recompute', default=True)


@contextmanager
def recomputing(on: bool) -> Iterator[None]:
    """Inside, whether norms, GELUs and gates are computed again in the backward pass instead of kept."""
    token = _RECOMPUTE.set(on)
    try:
        yield
    finally:
        _RECOMPUTE.reset(token)


def in_this_form(module: nn.Module) -> Callable[..., Tensor]:
    """Calls of the module that recompute as they would now, wherever they are made."""
    on = _RECOMPUTE.get()

    def run(*args) -> Tensor:
        with recomputing(on):
            return module(*args)

    return run


def keeps_maps() -> bool:
    """True if what a form would compute again is to be kept; without a gradient there is nothing to keep."""
    return torch.is_grad_enabled() and not _RECOMPUTE.get()


# ---------------------------------------------------------------------------------------------------------------------
# How a forward names its form

BRANCHES: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}  # forward of a class -> its form in a block


def by(form: Callable[..., Tensor | None]) -> Callable[[Method], Method]:
    """Decorates a plain method, in place of which `form` runs where it can.

    Args:
        form: takes what the method takes and returns what it returns, or None where the plain method is to run.
    """

    def decorate(plain: Method) -> Method:
        @functools.wraps(plain)
        def run(self: nn.Module, *args, **kwargs):
            out = form(self, *args, **kwargs)
            return plain(self, *args, **kwargs) if out is None else out

        return run

    return decorate


def in_block_by(form: Callable[..., Tensor]) -> Callable[[Method], Method]:
    """Decorates the forward of a branch of `TransformerBlock`: in a block, `form` runs in place of it and of its norm.

    Args:
        form: called as ``form(branch, x, *context, norm=norm, drop_path=drop_path)`` for
            ``x + drop_path(branch(norm(x), *context))``.
    """

    def decorate(plain: Method) -> Method:
        BRANCHES[plain] = form
        return plain

    return decorate


# ---------------------------------------------------------------------------------------------------------------------
# Transformer blocks and patch merging: layer norms


def transformer_block(block: nn.Module, x: Tensor, *context) -> Tensor | None:
    """Each branch with its norm, and with the sum where no stochastic depth comes between."""
    if not is_unobserved():
        return None
    for norm, branch, inputs in ((block.norm1, block.attn, context), (block.norm2, block.mlp, ())):
        form = BRANCHES.get(type(branch).forward) if is_unobserved(norm, branch) else None
        if form is None:
            x = x + block.drop_path(branch(norm(x), *inputs))
        else:
            x = form(branch, x, *inputs, norm=norm, drop_path=block.drop_path)
    return x


def attention(attn: nn.Module, x: Tensor, *context, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """x + proj(attend(qkv(norm(x)))): the norm with the first product, the sum with the last."""
    qkv, x = norm_then_linear(x, norm, attn.qkv)
    return linear_add(attn.attend(qkv, *context), attn.proj, x, getattr(attn, 'proj_drop', None), drop_path)


def bilstm(mixer: nn.Module, x: Tensor, *, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """x + proj(states(norm(x))): the sum with the product."""
    if can_fuse(norm) and has_norm_kernel(x, mixer.proj):
        y, x = norm_beside(x, norm.weight, norm.bias, norm.eps, lstm_dtype(x))
    else:
        y = norm(x)
    return linear_add(mixer.states(y), mixer.proj, x, drop_path)


def outlook(attn: nn.Module, x: Tensor, *, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """x + proj(attend(norm(x))): the sum with the product."""
    return linear_add(attn.attend(norm(x)), attn.proj, x, drop_path)


def mlp(module: nn.Module, x: Tensor, *, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """x + fc2(act(fc1(norm(x)))): neither the norm's output nor the GELU's is kept (`ops.mlp`)."""
    if not can_fuse(norm, *module.children()):
        return x + drop_path(module(norm(x)))
    fc1, fc2 = module.fc1, module.fc2
    on_gpu = has_norm_kernel(x, fc1)
    if keeps_maps() and not on_gpu:
        return linear_add(module.act(fc1(norm(x))), fc2, x, drop_path)
    weights = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    options = {'eps': norm.eps, 'approximate': module.act.approximate}
    if on_gpu:
        out, x = norm_mlp(x, *weights, **options, keeps=keeps_maps(), passes=True)
        return x + drop_path(out)
    joined = can_fuse(drop_path)
    out = norm_mlp(x, *weights, **options, residual=joined)
    return out if joined else x + drop_path(out)


def patch_merging(merging: nn.Module, x: Tensor) -> Tensor | None:
    """The norm with the product."""
    if not can_fuse(merging.norm, merging.reduction):
        return None
    return norm_then_linear(merging.join(x), merging.norm, merging.reduction, branches=False)[0]


def norm_then_linear(x: Tensor, norm: nn.Module, linear: nn.Module, branches: bool = True) -> tuple[Tensor, Tensor]:
    """linear(norm(x)), of which x alone is kept for the backward pass; and x, for the sum if this begins a branch."""
    fusible = can_fuse(norm, linear)
    on_gpu = fusible and has_norm_kernel(x, linear)
    if not fusible or (keeps_maps() and not on_gpu):
        return linear(norm(x)), x
    prologue = LayerNorm(norm.eps, keeps_maps(), torch.is_grad_enabled())
    tensors, passes = (x, linear.weight, linear.bias, norm.weight, norm.bias), branches and on_gpu
    out = recompute(prologue, Linear(), *tensors, passes=passes)
    return out if passes else (out, x)


def has_norm_kernel(x: Tensor, linear: nn.Linear) -> bool:
    """Whether a norm of x before a product runs as a kernel on a GPU (`ops.layer_norm`).

    The gradient of x beside the norm then joins in, and what is kept is up to the kernel.
    """
    return x.is_cuda and runs_as_kernel(x, product_dtype(x, linear.weight))


def linear_add(x: Tensor, linear: nn.Module, skip: Tensor, *drops: nn.Module | None) -> Tensor:
    """skip + linear(x), with what drops of that: [..., C].

    Where nothing is dropped the product is added to skip and the bias; without a gradient in place, a pass less.
    """
    parts = [linear, *(drop for drop in drops if drop is not None)]
    narrow = not x.is_meta and is_autocast_enabled(x.device.type)
    if narrow or skip.dtype != x.dtype or not can_fuse(*parts) or linear.bias is None:
        for part in parts:
            x = part(x)
        return skip + x
    total = (skip + linear.bias).flatten(0, -2)
    # not addmm_, which counters of operations do not know
    out = torch.addmm(total, x.flatten(0, -2), linear.weight.mT, out=None if torch.is_grad_enabled() else total)
    return out.view(skip.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions: ELSA's filters, the stems of MaxViT and VOLO, MBConv


def filters(attn: nn.Module, q: Tensor, k: Tensor) -> Tensor | None:
    """ELSA's filter convolution, without a map for the product of q and k."""
    conv = attn.filter_conv
    return product_conv(q, k, conv.weight, conv.bias) if can_fuse(conv) else None


def stem(module: nn.Module, x: Tensor) -> Tensor | None:
    """Norm and GELU with the second convolution."""
    norm, conv = module.norm1, module.conv2
    if keeps_maps() or not can_fuse(norm, module.act, conv):
        return None
    x = module.conv1(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
    return _conv_after(batch_norm_call(norm, gelu=True), conv, x, norm.weight, norm.bias)


def conv_stem(module: nn.Module, x: Tensor) -> Tensor | None:
    """Without a gradient, the norms of VOLO's stem with the convolutions before them."""
    convs, norms = (module.conv1, module.conv2, module.conv3), (module.norm1, module.norm2, module.norm3)
    if not can_fuse(*norms, module.act) or not can_fold_norms(*norms) or not is_unobserved(*convs, module.proj):
        return None
    if any(type(conv) is not nn.Conv2d for conv in convs):
        return None
    x = x.contiguous(memory_format=torch.channels_last)
    for conv, norm in zip(convs, norms, strict=True):
        stats = norm.running_mean, norm.running_var, norm.eps
        weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, *stats, norm.weight, norm.bias)
        x = conv2d(x, weight, bias, conv.stride, conv.padding).relu_()
    return module.proj(x).permute(0, 2, 3, 1).contiguous()


def mbconv(module: nn.Module, x: Tensor) -> Tensor | None:
    """Norms, GELUs and gate with the convolution behind them; without a gradient, norms with their neighbours."""
    if keeps_maps() or not can_fuse(*module.children()):
        return None
    norm0, norm1, norm2, se = module.pre_norm, module.norm1, module.norm2, module.se
    # by name: while FSDP has the weights gathered, `parameters()` of a module finds none
    gate = (se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias)
    if can_fold_norms(norm0, norm1, norm2):
        x = gelu(_conv_with_norms(module.conv1, x, norm1, norm0), 'tanh', inplace=True)
        x = gelu(_conv_with_norms(module.conv2, x, norm2), 'tanh', inplace=True)
        x.mul_(squeeze_excite_gate(x.mean((1, 2)), *gate)[:, None, None])
        return F.linear(x, module.conv3.weight.flatten(1), module.conv3.bias)
    x = _conv_after(batch_norm_call(norm0), module.conv1, x, norm0.weight, norm0.bias)
    x = _conv_after(batch_norm_call(norm1, gelu=True), module.conv2, x, norm1.weight, norm1.bias)
    gated = GatedBatchNorm(batch_norm_call(norm2, gelu=True))
    return _conv_after(gated, module.conv3, x, norm2.weight, norm2.bias, *gate)


def batch_norm_call(norm: nn.BatchNorm2d, gelu: bool = False) -> BatchNorm:
    """A call of a batch norm, counted as such, as a function of [B, H, W, C]; a GELU by tanh may follow."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return BatchNorm(norm.running_mean, norm.running_var, norm.training, norm.momentum, norm.eps, gelu)


def can_fold_norms(*norms: nn.BatchNorm2d) -> bool:
    """True if batch norms may be part of the convolutions beside them: by running statistics, without a gradient."""
    return not torch.is_grad_enabled() and not any(norm.training for norm in norms)


def _conv_after(prologue: Prologue, conv: SameConv2d, x: Tensor, *params: Tensor) -> Tensor:
    """The convolution of prologue(x, *params), of which x alone is kept (`ops.recompute`).

    [B, H, W, in_channels] -> [B, ceil(H / stride), ceil(W / stride), out_channels].
    """
    product, weight, region = _product(conv, x, conv.weight)
    return region(recompute(prologue, product, x, weight, conv.bias, *params))


def _conv_with_norms(
    conv: SameConv2d, x: Tensor, norm: nn.BatchNorm2d, pre_norm: nn.BatchNorm2d | None = None
) -> Tensor:
    """norm(conv(pre_norm(x))) by running statistics, which scale and shift the weights instead of the map.

    [B, H, W, in_channels] -> [B, ceil(H / stride), ceil(W / stride), out_channels]. A norm before is for kernels of
    1 x 1 alone: zeros around the map are not normed.
    """
    weight, bias = conv.weight, conv.bias
    if pre_norm is not None:
        scale = pre_norm.weight * (pre_norm.running_var + pre_norm.eps).rsqrt()
        bias = F.linear(pre_norm.bias - pre_norm.running_mean * scale, weight.flatten(1), bias)
        weight = weight * scale[:, None, None]
    stats = norm.running_mean, norm.running_var, norm.eps
    weight, bias = fuse_conv_bn_weights(weight, bias, *stats, norm.weight, norm.bias)
    product, weight, region = _product(conv, x, weight)
    return region(product.forward(x, weight, bias))


def _product(conv: SameConv2d, x: Tensor, weight: Tensor) -> tuple[Linear | Conv, Tensor, Callable[[Tensor], Tensor]]:
    """A convolution of x [B, H, W, C] as `ops.recompute` has it, its weight, and what to take of its output."""
    if conv.kernel_size == conv.stride == (1, 1):
        return Linear(), weight.flatten(1), lambda out: out
    # where more is padded after than before: a stride more before, and the first output dropped. That copies the
    # output; F.pad would copy the input
    pads = [conv.pads(axis, size) for axis, size in enumerate(x.shape[1:3])]
    top, left = (int(before < after) for before, after in pads)
    padding = (pads[0][0] + top * conv.stride[0], pads[1][0] + left * conv.stride[1])
    H, W = (-(-size // stride) for size, stride in zip(x.shape[1:3], conv.stride, strict=True))
    product = Conv(conv.stride, padding, conv.groups)
    return product, weight, lambda out: out[:, top : top + H, left : left + W].contiguous()
