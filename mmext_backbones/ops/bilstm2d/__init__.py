"""BiLSTM2D, the token mixer of Sequencer2D without its last linear layer: LSTMs along columns and rows, in both senses.

    i, f, o = sigmoid(W x_t + b + R h_{t-1})     c_t = f c_{t-1} + i g
    g       = tanh(W x_t + b + R h_{t-1})        h_t = o tanh(c_t)

with zero states at the start, for each column downwards and upwards, and for each row rightwards and leftwards. The
four directions have a W, R and b (of two summands) each, rows in the order i, f, g, o as torch keeps them.

Source: Tatsunami and Taki, "Sequencer" (arXiv 2205.01972), section 3.2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import check_devices, choose
from ..derivatives import TRANSFORMED, is_transformed
from ..torch_versions import get_autocast_dtype, is_autocast_enabled
from .cpu import bilstm2d_cpu
from .cpu import why_not as cpu_why_not
from .reference import bilstm2d_reference
from .torch_lstm import bilstm2d_torch

FORMS = ('cpu', 'torch', 'reference')


def bilstm2d(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor], *, backend: str = 'auto') -> Tensor:
    """Run the four recurrences over a map.

    Under autocast 'cpu' multiplies the input in the autocast type, as a linear layer does, and walks the
    recurrences in float32; 'torch' runs in the autocast type where the device has a kernel for it, else in float32.

    Args:
        x: the map, [B, H, W, C], any H and W.
        vertical: parameters of a bidirectional nn.LSTM of one layer, in its order: weight_ih [4h, C], weight_hh
            [4h, h], bias_ih and bias_hh [4h] downwards, then the same four upwards.
        horizontal: likewise, rightwards and leftwards.
        backend: 'cpu' (the kernel), 'torch' (torch's LSTM, any device; copies the map for either axis; on CUDA both
            axes at once, on two streams), 'reference' (the formula, token by token) or 'auto', see `ops.backends`.

    Returns:
        The states h, [B, H, W, 4h]: down, up, right, left. In the dtype of `x`; under autocast it may be float32.

    Raises:
        ValueError: for shapes or backends that do not fit.
        RuntimeError: where a backend is asked for by name and cannot run; the reason is in the message.
    """
    _check(x, vertical, horizontal)
    form = choose('bilstm2d', backend, FORMS, _why_not, x)
    if form == 'cpu' or (x.is_meta and form == 'reference'):  # of the meta device's shapes one node is enough
        return _cpu(x, [*vertical, *horizontal])
    if form == 'reference':
        return bilstm2d_reference(x, vertical, horizontal)
    return bilstm2d_torch(x, vertical, horizontal)


def lstm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """One of the two LSTMs by itself, on sequences [N, T, C] -> [N, T, 2h], as nn.LSTM with `batch_first`.

    It takes each sequence for a map of one row, and so gives the numbers that `bilstm2d` would give.

    Args:
        x: sequences of T tokens.
        weights: as `vertical` of `bilstm2d`.
    """
    return bilstm2d(x.unsqueeze(1), weights, weights)[:, 0, :, 2 * weights[1].shape[1] :]


def _why_not(form: str, x: Tensor) -> str | None:
    """Why a form cannot run on `x`, or None."""
    if form != 'cpu':
        return None
    if x.numel() == 0:
        return 'the map is empty'
    if x.is_meta:
        return None
    if is_transformed():
        return TRANSFORMED
    return cpu_why_not() if x.device.type == 'cpu' else f'it runs on the CPU, x is on {x.device}'


def _cpu(x: Tensor, weights: list[Tensor]) -> Tensor:
    if not x.is_meta and is_autocast_enabled('cpu') and x.dtype != torch.float64:
        return bilstm2d_cpu(x.to(get_autocast_dtype('cpu')), weights)
    return bilstm2d_cpu(x, weights).to(x.dtype)


def _check(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor]) -> None:
    if x.dim() != 4:
        raise ValueError(f'x has shape {tuple(x.shape)}: expected [B, H, W, C]')
    for name, weights in (('vertical', vertical), ('horizontal', horizontal)):
        if len(weights) != 8:
            raise ValueError(f'{name} has {len(weights)} tensors: expected the 8 of a bidirectional LSTM of one layer')
        h, shapes = vertical[1].shape[-1], [tuple(weight.shape) for weight in weights]
        expected = [(4 * h, x.shape[3]), (4 * h, h), (4 * h,), (4 * h,)] * 2
        if shapes != expected:
            raise ValueError(f'{name} has shapes {shapes}: expected {expected}')
        for weight in weights:
            check_devices(x=x, **{name: weight})
