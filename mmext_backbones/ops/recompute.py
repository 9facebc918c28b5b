"""Linear layers and convolutions that do not keep their input, but what it is cheaply made from.

A network alternates costly products (a linear layer, a convolution) with cheap maps (a norm, a GELU, a gate). For the
gradient of its weights a product keeps its input, and the cheap map before it keeps its own: two to four copies of the
same map. Here

    out = product(prologue(x))

is one function. It keeps `x` alone, and its backward pass computes `prologue(x)` again. Nothing else changes: the same
numbers, the same dtypes under autocast.

Maps are [..., C], or [B, H, W, C] where the product is a convolution or the prologue a gate.
"""

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import norm_gelu_compiled

aten, compiled = torch.ops.aten, torch.ops.mmext_backbones


def recompute(
    prologue: 'Prologue', product: 'Linear | Conv', x: Tensor, weight: Tensor, bias: Tensor | None, *params: Tensor
) -> Tensor:
    """product(prologue(x, *params), weight, bias), differentiable once in all of its tensors.

    Args:
        prologue: `LayerNorm`, `Gelu`, `BatchNorm` or `GatedBatchNorm`.
        product: `Linear` or `Conv`.
        x: the map, [..., C].
        weight: of the product, as F.linear or F.conv2d take it.
        bias: of the product, or None.
        *params: weights of the prologue.
    """
    return _Recompute.apply(prologue, product, _autocast_dtype(x), x, weight, bias, *params)


class Prologue(Protocol):
    """A cheap map, by its three passes."""

    def forward(self, x: Tensor, *params: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The map's output, a tensor of its own, and small tensors that the other passes take as `stats`."""

    def again(self, x: Tensor, stats: tuple[Tensor, ...], *params: Tensor) -> tuple[Tensor, Any]:
        """The same output, and what the gradients can use of its making. No effects."""

    def backward(
        self, grad: Tensor, made: Any, x: Tensor, stats: tuple[Tensor, ...], *params: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of x and of each of `params`. `grad` may be overwritten."""


class LayerNorm(NamedTuple):
    """F.layer_norm over the last axis. Params: weight, bias."""

    eps: float

    def forward(self, x, weight, bias):
        y, *stats = aten.native_layer_norm(x.to(weight.dtype), x.shape[-1:], weight, bias, self.eps)
        return y, stats

    def again(self, x, stats, weight, bias):
        return self.forward(x, weight, bias)[0], None

    def backward(self, grad, made, x, stats, weight, bias):
        grad, x = grad.to(weight.dtype), x.to(weight.dtype)
        return aten.native_layer_norm_backward(grad, x, x.shape[-1:], *stats, weight, bias, [True] * 3)


class Gelu(NamedTuple):
    """F.gelu. Params: none.

    Args:
        approximate: 'none' or 'tanh'.
        inplace: overwrite x in the forward pass; where no gradient is asked for.
    """

    approximate: str = 'none'
    inplace: bool = False

    def forward(self, x):
        if not self._compiled(x):
            y = aten.gelu_(x, approximate=self.approximate) if self.inplace else F.gelu(x, approximate=self.approximate)
        elif self.inplace and x.is_contiguous():
            compiled.gelu_(y := x)
        else:
            y = compiled.norm_gelu(x, None, None, None, None, True)
        return y, ()

    def again(self, x, stats):
        return self.forward(x)[0], None

    def backward(self, grad, made, x, stats):
        if not self._compiled(x):
            return (aten.gelu_backward(grad, x, approximate=self.approximate),)
        grad = grad.contiguous()
        compiled.norm_gelu_backward_(grad, x, None, None, None, None, True)
        return (grad,)

    def _compiled(self, x: Tensor) -> bool:
        return self.approximate == 'tanh' and norm_gelu_compiled.runs(x)


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

    def forward(self, x, weight, bias):
        n = x.numel() // x.shape[-1]
        if self.training and n < 2:
            raise ValueError(f'x has shape {tuple(x.shape)}: expected more than one value a channel in training')
        if not self.training:
            stats = self.running_mean, self.running_var
            return self.again(x, stats, weight, bias)[0], stats
        if not self._compiled(x, weight, bias):
            y, mean, rstd = torch.native_batch_norm(_nchw(x), weight, bias, *self[:5])
            return aten.gelu_(_tokens(y), approximate='tanh') if self.gelu else _tokens(y), (mean, rstd**-2 - self.eps)
        mean, var = compiled.moments(x)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (n / (n - 1)), self.momentum)
        return self.again(x, (mean, var), weight, bias)[0], (mean, var)

    def again(self, x, stats, weight, bias):
        mean, var = stats
        if self._compiled(x, weight, bias):
            return compiled.norm_gelu(x, mean, (var + self.eps).rsqrt(), weight, bias, self.gelu), None
        z = _tokens(F.batch_norm(_nchw(x), mean, var, weight, bias, eps=self.eps))
        return F.gelu(z, approximate='tanh') if self.gelu else z, z

    def backward(self, grad, made, x, stats, weight, bias):
        mean, var = stats
        rstd = (var + self.eps).rsqrt()
        if self._compiled(x, weight, bias):
            grad = grad.contiguous()
            sums = compiled.norm_gelu_backward_(grad, x, mean, rstd, weight, bias, self.gelu)
            if self.training:
                compiled.norm_backward_input_(grad, x, mean, rstd, weight, sums)
            else:
                grad.mul_(weight * rstd)
            return grad, sums[1] * rstd, sums[0]
        if self.gelu:
            grad = aten.gelu_backward(grad, made, approximate='tanh')
        grad, *grads = aten.native_batch_norm_backward(
            _nchw(grad), _nchw(x), weight, mean, var, mean, rstd, self.training, self.eps, [True] * 3
        )
        return _tokens(grad), *grads

    def _compiled(self, x: Tensor, *params: Tensor) -> bool:
        return norm_gelu_compiled.runs(x, *params, self.running_mean, self.running_var)


class GatedBatchNorm(NamedTuple):
    """`BatchNorm`, its output y times a gate: y * sigmoid(fc2(silu(fc1(mean of y over H and W)))).

    That is squeeze-and-excitation. Params: weight and bias of the norm, of fc1 and of fc2.
    """

    norm: BatchNorm

    def forward(self, x, weight, bias, *gate):
        y, stats = self.norm.forward(x, weight, bias)
        mean = y.mean((1, 2))
        return y.mul_(squeeze_excite_gate(mean, *gate)[:, None, None]), (*stats, mean)

    def again(self, x, stats, weight, bias, *gate):
        *stats, mean = stats
        y, made = self.norm.again(x, stats, weight, bias)
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (mean, *gate)]
            factor = squeeze_excite_gate(*leaves)
        return y * factor.detach()[:, None, None], (made, y, factor, leaves)

    def backward(self, grad, made, x, stats, weight, bias, *gate):
        made, y, factor, leaves = made
        grad_factor = y.mul_(grad).sum((1, 2))
        grad_mean, *grads = torch.autograd.grad(factor, leaves, grad_factor)
        share = grad_mean / (x.shape[1] * x.shape[2])
        grad = torch.addcmul(share[:, None, None], grad, factor.detach()[:, None, None])
        return *self.norm.backward(grad, made, x, stats[:-1], weight, bias), *grads


def squeeze_excite_gate(mean: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor) -> Tensor:
    """The gate of each channel from the means of all: [B, C] -> [B, C]. Source: Hu et al. (arXiv 1709.01507)."""
    weight1, bias1, weight2, bias2 = (tensor.to(mean.dtype) for tensor in (weight1, bias1, weight2, bias2))
    hidden = F.silu(F.linear(mean, weight1.flatten(1), bias1))
    return torch.sigmoid(F.linear(hidden, weight2.flatten(1), bias2))


class Linear(NamedTuple):
    """F.linear on [..., C]."""

    def forward(self, y, weight, bias):
        return F.linear(y, weight, bias)

    def backward(self, grad, y, weight, needs):
        """Gradients of y, weight and bias, None where `needs` is false."""
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            (rows @ weight).view(y.shape) if needs[0] else None,
            rows.mT @ y.reshape(-1, y.shape[-1]) if needs[1] else None,
            rows.sum(0) if needs[2] else None,
        )


class Conv(NamedTuple):
    """F.conv2d on [B, H, W, C]."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int

    def forward(self, y, weight, bias):
        return _tokens(F.conv2d(_nchw(y), weight, bias, self.stride, self.padding, groups=self.groups))

    def backward(self, grad, y, weight, needs):
        def gradients(y, padding, *needs):
            return aten.convolution_backward(
                _nchw(grad), _nchw(y), weight, [len(weight)], self.stride, padding, (1, 1), False, (0, 0), self.groups,
                needs,
            )  # fmt: skip

        pad_h, pad_w = self.padding
        if pad_h < weight.shape[2] - 1 and pad_w < weight.shape[3] - 1:
            grad_y, *grads = gradients(y, self.padding, *needs)
        else:  # oneDNN is slow in the weights' gradient under so much padding
            grad_y = gradients(y, self.padding, needs[0], False, False)[0] if needs[0] else None
            _, *grads = gradients(F.pad(y, (0, 0, pad_w, pad_w, pad_h, pad_h)), (0, 0), False, *needs[1:])
        return _tokens(grad_y) if needs[0] else None, *grads


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, prologue, product, dtype, x, weight, bias, *params):
        y, stats = prologue.forward(x, *params)
        ctx.save_for_backward(x, weight, *params, *stats)
        ctx.functions, ctx.dtype, ctx.num_params = (prologue, product), dtype or y.dtype, len(params)
        return product.forward(y.to(ctx.dtype), *(None if t is None else t.to(ctx.dtype) for t in (weight, bias)))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, *rest = ctx.saved_tensors
        params, stats = rest[: ctx.num_params], rest[ctx.num_params :]
        prologue, product = ctx.functions
        needs_x, needs_weight, needs_bias, *needs_params = ctx.needs_input_grad[3:]
        below = needs_x or any(needs_params)
        y, made = prologue.again(x, stats, *params)
        grad_y, grad_weight, grad_bias = product.backward(
            grad, y.to(ctx.dtype), weight.to(ctx.dtype), [below, needs_weight, needs_bias]
        )
        y_dtype = y.dtype
        del y
        grad_x, *grads = [None] * (1 + len(params))
        if below:
            grad_x, *grads = prologue.backward(grad_y.to(y_dtype), made, x, stats, *params)
        return None, None, None, grad_x, grad_weight, grad_bias, *grads


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast would cast the input of a product to, or None."""
    device = x.device.type
    if x.is_meta or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(device)


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()
