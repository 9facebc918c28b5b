"""ONNX operators for what the exporter does not know: recurrences as LSTM.

PyTorch's exporters unroll one to the length it was recorded with.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

from ..layers import BiLSTM2D
from ..layers.bilstm import LSTMParameters
from ..ops.dispatcher import register
from .box_translations import box_translations

OPSET = 18


class RecordedBiLSTM2D(nn.Module):
    """`layers.BiLSTM2D` over the operator `onnx_lstm`, with its weights as ONNX orders them; for inference."""

    def __init__(self, original: BiLSTM2D) -> None:
        super().__init__()
        self.proj = original.proj
        for axis in ('v', 'h'):
            for name, tensor in zip('WRB', _in_order_of_onnx(getattr(original, f'rnn_{axis}')), strict=True):
                self.register_buffer(f'{name}_{axis}', tensor)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        lstm = torch.ops.mmext_backbones.onnx_lstm
        v = lstm(x.permute(1, 0, 2, 3).reshape(H, B * W, C), self.W_v, self.R_v, self.B_v)  # [H, 2, B * W, h]
        h = lstm(x.permute(2, 0, 1, 3).reshape(W, B * H, C), self.W_h, self.R_h, self.B_h)
        v = v.reshape(H, 2, B, W, -1).permute(2, 0, 3, 1, 4).reshape(B, H, W, -1)
        h = h.reshape(W, 2, B, H, -1).permute(2, 3, 0, 1, 4).reshape(B, H, W, -1)
        return self.proj(torch.cat((v, h), dim=-1))


def _in_order_of_onnx(lstm: LSTMParameters) -> tuple[Tensor, Tensor, Tensor]:
    """W [2, 4h, C], R [2, 4h, h] and B [2, 8h] with the gates as i, o, f, g; PyTorch's are i, f, g, o."""

    def gates(tensor: Tensor) -> Tensor:
        i, f, g, o = tensor.detach().chunk(4)
        return torch.cat((i, o, f, g))

    W, R, b, c = ([gates(tensor) for tensor in lstm.tensors()[n::4]] for n in range(4))
    return torch.stack(W), torch.stack(R), torch.stack([torch.cat(both) for both in zip(b, c, strict=True)])


def _no_kernel(*args: Any) -> Tensor:
    raise NotImplementedError('mmext_backbones::onnx_lstm stands in recorded networks, for the ONNX exporter')


register(
    'onnx_lstm',
    '(Tensor x, Tensor W, Tensor R, Tensor B) -> Tensor',
    _no_kernel,
    lambda x, W, R, B: x.new_empty(x.shape[0], 2, x.shape[1], R.shape[2]),
)


def _lstm(x, W, R, B):
    """[T, N, C] -> [T, 2, N, h]."""
    return op.LSTM(x, W, R, B, direction='bidirectional', hidden_size=W.shape[1] // 4)[0]


def _floor_div(a, b):
    """Python's //, which rounds down. ONNX divides towards zero, and so does PyTorch's exporter (2.13): -(-H // 4)."""
    return op.Div(op.Sub(a, op.Mod(a, b)), b)


def translation_table() -> dict[Callable, Callable]:
    """For the argument of that name of `torch.onnx.export`."""
    operators = torch.ops.mmext_backbones
    own = {operators.onnx_lstm.default: _lstm, operator.floordiv: _floor_div}
    return own | box_translations()
