"""Window and grid attention as an operator of the dispatcher with its gradients, for any kernels."""

from collections.abc import Callable, Sequence

import torch

from ..derivatives import first_order
from ..dispatcher import register
from ..triton_start import call

ARGUMENTS = (
    'Tensor qkv, Tensor bias, Tensor? padding, '
    'int num_heads, SymInt[] window_size, float scale, int shift_size, bool grid'
)


def register_window_attention(name: str, forward: Callable, backward: Callable, devices: Sequence[str]) -> None:
    """Makes the operators `name` and `{name}_backward`, which `WindowAttentionFunction` calls.

    Args:
        name: of the first operator.
        forward: computes it, by the arguments of `ARGUMENTS`.
        backward: from the gradient of the output and the same arguments to those of qkv, bias and padding (of no
            elements without padding).
        devices: dispatch keys that both serve.
    """
    register(name, f'({ARGUMENTS}) -> Tensor', forward, _fake_forward, devices)
    schema = f'(Tensor grad, {ARGUMENTS}) -> (Tensor, Tensor, Tensor)'
    register(f'{name}_backward', schema, backward, _fake_backward, devices)


def _fake_forward(qkv, bias, padding, num_heads, window_size, scale, shift_size, grid):
    B, H, W, C3 = qkv.shape
    return qkv.new_empty(B, H, W, C3 // 3)


def _fake_backward(grad, qkv, bias, padding, num_heads, window_size, scale, shift_size, grid):
    grad_padding = bias.new_empty(0) if padding is None else padding.new_empty(padding.shape)
    return qkv.new_empty(qkv.shape), bias.new_empty(bias.shape), grad_padding


class WindowAttentionFunction(torch.autograd.Function):
    """The node of autograd: name of the operator, whether a person asked for its kernel (`triton_start.call`), qkv,
    bias, padding or None, and the rest of `ARGUMENTS`."""

    @staticmethod
    def forward(ctx, name, by_name, qkv, bias, padding, *options):
        ctx.save_for_backward(qkv, bias, padding)
        ctx.name, ctx.by_name, ctx.options = name, by_name, options
        return call(getattr(torch.ops.mmext_backbones, name), by_name, qkv, bias, padding, *options)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        qkv, bias, padding = ctx.saved_tensors
        operator = getattr(torch.ops.mmext_backbones, f'{ctx.name}_backward')
        grad_qkv, grad_bias, grad_padding = call(operator, ctx.by_name, grad, qkv, bias, padding, *ctx.options)
        return None, None, grad_qkv, grad_bias, None if padding is None else grad_padding, *[None] * len(ctx.options)
