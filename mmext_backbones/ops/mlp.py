"""The perceptron of a transformer block with its norm: x -> fc2(gelu(fc1(layer_norm(x)))).

For the backward pass it keeps x and the map before the GELU, of the four that autograd would keep; the norm and the
GELU are computed again. On the CPU it works through a few thousand tokens at a time, so that what lies between the
products stays in the cache: a large map of fresh memory costs more than the arithmetic on it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .derivatives import first_order
from .norm_gelu import gelu, gelu_backward_sum_
from .recompute import LayerNorm, product_dtype

TOKENS = 2048  # at a time and thread; with fewer the products lose more than the cache gives


def norm_mlp(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    *,
    eps: float,
    approximate: str = 'none',
    residual: bool = False,
    keeps: bool = False,
    passes: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """fc2(gelu(fc1(layer_norm(x)))), or x plus that, differentiable once.

    Args:
        x: [..., C].
        norm_weight, norm_bias: of the norm over the last axis, [C].
        weight1, bias1: of the first linear layer, [hidden, C] and [hidden].
        weight2, bias2: of the second, [C, hidden] and [C].
        eps: of the norm.
        approximate: 'none' for the exact GELU, 'tanh' for its approximation.
        residual: whether x is added. The second product then adds to x and its bias, in one pass less.
        keeps: whether the outputs of norm and GELU are kept for the backward pass instead of computed again; for maps
            that are on a GPU.
        passes: whether x is returned, too, for a skip connection: its gradient is then added to that of the norm where
            that is written.

    Returns:
        [..., C] in the dtype that F.linear, or the sum of x and it, would give, under autocast or not.

    Raises:
        ValueError: if x and the weights differ in dtype outside autocast.
    """
    tensors = (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    dtype = product_dtype(x, weight1)
    if residual and x.dtype != dtype:
        return x + _NormMlp.apply(*tensors, eps, approximate, dtype, keep, False, False, False)
    return _NormMlp.apply(*tensors, eps, approximate, dtype, keep, residual, keep and keeps, passes)


class _NormMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2,
        eps, approximate, dtype, keep, residual, keeps, passes,
    ):  # fmt: skip
        tokens = x.reshape(-1, x.shape[-1])
        weight1, bias1, weight2, bias2 = (tensor.to(dtype) for tensor in (weight1, bias1, weight2, bias2))
        out = torch.empty_like(tokens, dtype=dtype)
        hidden = out.new_empty(len(tokens) if keep else 0, len(weight1))
        norm = LayerNorm(eps, keeps, keep)
        for rows in _parts(tokens):
            y, stats = norm.forward(tokens[rows], norm_weight, norm_bias, dtype)
            h = torch.addmm(bias1, y.to(dtype), weight1.mT, out=hidden[rows] if keep else None)
            h = gelu(h, approximate, inplace=not keep)
            if residual:
                torch.add(tokens[rows], bias2, out=out[rows])
            torch.addmm(out[rows] if residual else bias2, h, weight2.mT, out=out[rows])
        ctx.save_for_backward(x, hidden, norm_weight, norm_bias, weight1, weight2, *((h, *stats) if keeps else ()))
        ctx.norm, ctx.approximate, ctx.residual = norm, approximate, residual
        out = out.view(x.shape)
        return (out, x) if passes else out

    @staticmethod
    @first_order
    def backward(ctx, grad, skip=None):
        x, hidden, norm_weight, norm_bias, weight1, weight2, *kept = ctx.saved_tensors
        tokens, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, x.shape[-1])
        skip = grad if ctx.residual else None if skip is None else skip.reshape(tokens.shape)
        parts, total = list(_parts(tokens)), None
        grad_x = torch.empty_like(tokens) if len(parts) > 1 else None
        for rows in parts:
            g, skip_t = grad[rows], None if skip is None else skip[rows]
            grad_h = g @ weight2
            needs = not kept, ctx.needs_input_grad[4]
            h, grad_bias1 = gelu_backward_sum_(grad_h, hidden[rows], ctx.approximate, *needs)
            h = kept[0] if kept else h
            y, grad_t, *grad_norm = ctx.norm.backward(
                grad_h @ weight1, tokens[rows], kept[1:], norm_weight, norm_bias, skip_t
            )
            if grad_x is None:
                grad_x = grad_t.to(tokens.dtype)
            else:
                grad_x[rows] = grad_t
            part = [
                *grad_norm,
                grad_h.mT @ y.to(h.dtype) if ctx.needs_input_grad[3] else None,
                grad_bias1 if ctx.needs_input_grad[4] else None,
                g.mT @ h if ctx.needs_input_grad[5] else None,
                g.sum(0) if ctx.needs_input_grad[6] else None,
            ]
            total = part if total is None else [a if a is None else a.add_(b) for a, b in zip(total, part, strict=True)]
        return grad_x.view(x.shape), *total, *[None] * 7


def _parts(tokens: Tensor) -> Iterator[slice]:
    at_once = TOKENS * torch.get_num_threads() if tokens.device.type == 'cpu' else len(tokens)
    parts = -(-len(tokens) // max(1, at_once)) or 1
    for i in range(parts):
        yield slice(len(tokens) * i // parts, len(tokens) * (i + 1) // parts)
