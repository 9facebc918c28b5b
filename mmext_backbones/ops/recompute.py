"""Linear layers and convolutions that recompute their input in the backward pass instead of keeping it.

A network alternates costly products (a linear layer, a convolution) with cheap maps (a norm, a GELU, a gate). For the
gradient of its weights a product keeps its input, and the cheap map before it keeps its own: two to four copies of the
same map. Here

    out = product(prologue(x))

is one function. It keeps `x` alone, and its backward pass computes `prologue(x)` again. Nothing else changes: the same
numbers, the same dtypes under autocast.

Maps are [..., C], or [B, H, W, C] where the product is a convolution or the prologue a gate.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .conv import conv2d, conv2d_backward
from .derivatives import first_order
from .layer_norm import layer_norm, layer_norm_backward, runs_as_kernel
from .norm_gelu import cpu, gelu, gelu_backward_
from .torch_versions import get_autocast_dtype, is_autocast_enabled

aten, compiled = torch.ops.aten, torch.ops.mmext_backbones


def recompute(
    prologue: 'Prologue',
    product: 'Linear | Conv',
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *params: Tensor,
    passes: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """product(prologue(x, *params), weight, bias), differentiable once in all of its tensors.

    Args:
        prologue: `LayerNorm`, `BatchNorm` or `GatedBatchNorm`.
        product: `Linear` or `Conv`.
        x: the map, [..., C].
        weight: of the product, as F.linear or F.conv2d take it.
        bias: of the product, or None.
        *params: weights of the prologue.
        passes: whether x is returned, too, for a skip connection: its gradient is then added to that of a `LayerNorm`
            where that is written.

    Raises:
        ValueError: if x and weight differ in dtype outside autocast, or a batch norm has one value a channel.
    """
    return _Recompute.apply(prologue, product, product_dtype(x, weight), passes, x, weight, bias, *params)


class Prologue(Protocol):
    """A cheap map, by its two passes."""

    def forward(self, x: Tensor, *params: Tensor, dtype: torch.dtype) -> tuple[Tensor, Sequence[Tensor]]:
        """The map's output, a tensor of its own, and tensors that the backward pass takes as `stats`.

        `dtype` is what the product takes; the output may be of that type, or wider.
        """

    def backward(self, grad: Tensor, x: Tensor, stats: Sequence[Tensor], *params: Tensor) -> tuple[Tensor, ...]:
        """The output again, then the gradients of x and of each of `params`. `grad` may be overwritten."""


class LayerNorm(NamedTuple):
    """F.layer_norm over the last axis; on GPUs a pass a direction (`ops.layer_norm`). Params: weight, bias.

    Args:
        eps: added to the variance.
        keeps: whether the output is kept for the backward pass instead of computed again.
        trained: whether a backward pass will follow.
    """

    eps: float
    keeps: bool = False
    trained: bool = False

    def forward(self, x, weight, bias, dtype):
        if runs_as_kernel(x, dtype):
            y = layer_norm(x, weight, bias, self.eps, dtype, again=not self.keeps if self.trained else None)
        else:
            x = self.widened(x, weight)
            y = aten.native_layer_norm(x, x.shape[-1:], weight, bias, self.eps)[0]
        return y, (y,) if self.keeps else ()

    def backward(self, grad, x, stats, weight, bias, skip=None):
        """`skip`: a gradient of x from elsewhere, which is added."""
        if runs_as_kernel(x, grad.dtype):
            y, *grads = layer_norm_backward(grad, x, weight, bias, self.eps, skip, again=not stats)
            return stats[0] if stats else y, *grads
        x, shape = self.widened(x, weight), x.shape[-1:]
        y, mean, rstd = aten.native_layer_norm(x, shape, weight, bias, self.eps)
        grads = aten.native_layer_norm_backward(grad.to(x.dtype), x, shape, mean, rstd, weight, bias, [True] * 3)
        return y, grads[0] if skip is None else grads[0].add_(skip), *grads[1:]

    def widened(self, x, weight):
        """x in the dtype of the norm, as autocast has it: the CPU norms narrower maps as they are."""
        return x if x.device.type == 'cpu' else x.to(weight.dtype)


class BatchNorm(NamedTuple):
    """F.batch_norm over all axes but the last, then GELU by tanh where `gelu` is set. Params: weight, bias.

    Args:
        running_mean, running_var: [C]; updated by the forward pass in training, and only there.
        training: norm by the statistics of the batch instead of the running ones.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance.
        gelu: whether a GELU follows.
    """

    running_mean: Tensor
    running_var: Tensor
    training: bool
    momentum: float
    eps: float
    gelu: bool

    def forward(self, x, weight, bias, dtype=None):
        n = x.numel() // x.shape[-1]
        if self.training and n < 2:
            raise ValueError(f'x has shape {tuple(x.shape)}: expected more than one value a channel in training')
        if not self.training:
            stats = self.running_mean, self.running_var
        elif self._compiled(x, weight, bias):
            stats = mean, var = compiled.moments(x)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (n / (n - 1)), self.momentum)
        else:
            y, mean, rstd = torch.native_batch_norm(_nchw(x), weight, bias, *self[:5])
            y = _tokens(y)
            return gelu(y, 'tanh', inplace=True) if self.gelu else y, (mean, rstd**-2 - self.eps)
        return self.normed(x, stats, weight, bias), stats

    def normed(self, x, stats, weight, bias):
        """The output by given mean and variance."""
        mean, var = stats
        if self._compiled(x, weight, bias):
            return compiled.norm_gelu(x, mean, (var + self.eps).rsqrt(), weight, bias, self.gelu)
        y = _tokens(F.batch_norm(_nchw(x), mean, var, weight, bias, eps=self.eps))
        return gelu(y, 'tanh', inplace=True) if self.gelu else y

    def backward(self, grad, x, stats, weight, bias):
        if x.numel() == 0:  # PyTorch's own kernel on the CPU divides by zero, which ends the process
            return torch.empty_like(x), torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        mean, var = stats
        rstd = (var + self.eps).rsqrt()
        if self._compiled(x, weight, bias):
            grad = grad.contiguous()
            y, sums = compiled.norm_gelu_backward_(grad, x, mean, rstd, weight, bias, self.gelu)
            if self.training:
                compiled.norm_backward_input_(grad, x, mean, rstd, weight, sums)
            else:
                grad.mul_(weight * rstd)
            return y, grad, sums[1] * rstd, sums[0]
        y = _tokens(F.batch_norm(_nchw(x), mean, var, weight, bias, eps=self.eps))
        if self.gelu:
            y = gelu_backward_(grad, y, 'tanh')
        grad, *grads = aten.native_batch_norm_backward(
            _nchw(grad), _nchw(x), weight, mean, var, mean, rstd, self.training, self.eps, [True] * 3
        )
        return y, _tokens(grad), *grads

    def _compiled(self, x: Tensor, *params: Tensor) -> bool:
        return cpu.why_not(x, *params, self.running_mean, self.running_var) is None


class GatedBatchNorm(NamedTuple):
    """`BatchNorm`, its output y times a gate: y * sigmoid(fc2(silu(fc1(mean of y over H and W)))).

    That is squeeze-and-excitation. Params: weight and bias of the norm, of fc1 and of fc2.
    """

    norm: BatchNorm

    def forward(self, x, weight, bias, *gate, dtype=None):
        y, stats = self.norm.forward(x, weight, bias)
        mean = y.mean((1, 2))
        return y.mul_(squeeze_excite_gate(mean, *gate)[:, None, None]), (*stats, mean)

    def backward(self, grad, x, stats, weight, bias, *gate):
        *stats, mean = stats
        y = self.norm.normed(x, stats, weight, bias)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (mean, *gate)]
            factor = squeeze_excite_gate(*leaves)
        grad_mean, *grads = torch.autograd.grad(factor, leaves, y.mul_(grad).sum((1, 2)))
        factor = factor.detach()[:, None, None]
        share = grad_mean[:, None, None] / (x.shape[1] * x.shape[2])
        y, *grads_norm = self.norm.backward(torch.addcmul(share, grad, factor), x, stats, weight, bias)
        return y.mul_(factor), *grads_norm, *grads


def squeeze_excite_gate(mean: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The gate of each channel from the means of all: [B, C] -> [B, C]. Source: Hu et al. (arXiv 1709.01507)."""
    weight1, bias1, weight2, bias2 = (tensor.to(mean.dtype) for tensor in (weight1, bias1, weight2, bias2))
    hidden = F.silu(F.linear(mean, weight1.flatten(1), bias1))
    return torch.sigmoid(F.linear(hidden, weight2.flatten(1), bias2))


class Linear(NamedTuple):
    """F.linear on [..., C]."""

    def forward(self, y, weight, bias):
        return F.linear(y, weight, bias)

    def input_gradient(self, grad, x, weight):
        return grad @ weight

    def weight_gradient(self, grad, y, weight):
        return grad.reshape(-1, grad.shape[-1]).mT @ y.reshape(-1, y.shape[-1])


class Conv(NamedTuple):
    """F.conv2d on [B, H, W, C]."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int

    def forward(self, y, weight, bias):
        return _tokens(conv2d(_nchw(y), weight, bias, self.stride, self.padding, self.groups))

    def input_gradient(self, grad, x, weight):
        return _tokens(self._gradients(grad, x, weight, self.padding, (True, False))[0])

    def weight_gradient(self, grad, y, weight):
        padding = pad_h, pad_w = self.padding
        if pad_h >= weight.shape[2] - 1 or pad_w >= weight.shape[3] - 1:  # oneDNN is slow there
            y, padding = F.pad(y, (0, 0, pad_w, pad_w, pad_h, pad_h)), (0, 0)
        return self._gradients(grad, y, weight, padding, (False, True))[1]

    def _gradients(self, grad, y, weight, padding, needs):
        return conv2d_backward(_nchw(grad), _nchw(y), weight, self.stride, padding, self.groups, needs)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, prologue, product, dtype, passes, x, weight, bias, *params):
        weight, bias = (None if tensor is None else tensor.to(dtype) for tensor in (weight, bias))
        y, stats = prologue.forward(x, *params, dtype=dtype)
        ctx.save_for_backward(x, weight, *params, *stats)
        ctx.functions, ctx.num_params, ctx.dtype = (prologue, product), len(params), y.dtype
        out = product.forward(y.to(dtype), weight, bias)
        return (out, x) if passes else out

    @staticmethod
    @first_order
    def backward(ctx, grad, *skips):
        x, weight, *rest = ctx.saved_tensors
        params, stats = rest[: ctx.num_params], rest[ctx.num_params :]
        prologue, product = ctx.functions
        grad_y = product.input_gradient(grad, x, weight).to(ctx.dtype)
        y, *grads = prologue.backward(grad_y, x, stats, *params, *skips)
        del grad_y
        grad_weight = product.weight_gradient(grad, y.to(weight.dtype), weight) if ctx.needs_input_grad[5] else None
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[6] else None
        return None, None, None, None, grads[0], grad_weight, grad_bias, *grads[1:]


def product_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which F.linear would multiply x and a weight, under autocast or not.

    Raises:
        ValueError: where it would refuse them.
    """
    device = x.device.type
    if not x.is_meta and x.dtype != torch.float64 and is_autocast_enabled(device):
        return get_autocast_dtype(device)
    if x.dtype != weight.dtype:
        raise ValueError(f'x is {x.dtype} and the weight {weight.dtype}: expected one dtype, or autocast')
    return x.dtype


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()
