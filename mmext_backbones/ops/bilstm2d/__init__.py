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

from ..dispatcher import chosen_backend
from ..streams import on_two_streams
from ..torch_versions import get_autocast_dtype, is_autocast_enabled
from .cpu import bilstm2d_compiled, why_not

BACKENDS = ('auto', 'compiled', 'torch')
ENVIRONMENT = 'MMEXT_BILSTM2D_BACKEND'  # what 'auto' stands for, where it is set


def bilstm2d(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor], *, backend: str = 'auto') -> Tensor:
    """Run the four recurrences over a map.

    Under autocast the compiled backend multiplies the input in the autocast type, as a linear layer does, and walks the
    recurrences in float32; torch's runs in the autocast type where the device has a kernel for it, else in float32.

    Args:
        x: the map, [B, H, W, C], any H and W.
        vertical: parameters of a bidirectional nn.LSTM of one layer, in its order: weight_ih [4h, C], weight_hh
            [4h, h], bias_ih and bias_hh [4h] downwards, then the same four upwards.
        horizontal: likewise, rightwards and leftwards.
        backend: 'compiled' (CPU, needs a C compiler at its first use on a machine), 'torch' (torch's LSTM, any device;
            copies the map for either axis; on CUDA both axes at once, on two streams) or 'auto': the first of them that
            runs, or what the environment variable MMEXT_BILSTM2D_BACKEND names.

    Returns:
        The states h, [B, H, W, 4h]: down, up, right, left. In the dtype of `x`; under autocast it may be float32.

    Raises:
        ValueError: for shapes or backends that do not fit.
        RuntimeError: where 'compiled' is asked for and cannot run; the reason is in the message.
    """
    if backend == 'auto':
        backend = chosen_backend(ENVIRONMENT)
    _check(x, vertical, horizontal, backend)
    cpu = x.device.type == 'cpu'
    if backend == 'compiled' and not x.is_meta:
        if not cpu:
            raise RuntimeError(f"backend='compiled' runs on the CPU, x is on {x.device}")
        if why_not() is not None:
            raise RuntimeError(f"backend='compiled': {why_not()}")
    # the meta device has shapes only, the same from every backend: one node of the dispatcher
    if backend != 'torch' and x.numel() > 0 and (x.is_meta or (cpu and why_not() is None)):
        return _compiled(x, [*vertical, *horizontal])
    return _torch(x, vertical, horizontal)


def _compiled(x: Tensor, weights: list[Tensor]) -> Tensor:
    if not x.is_meta and is_autocast_enabled('cpu') and x.dtype != torch.float64:
        return bilstm2d_compiled(x.to(get_autocast_dtype('cpu')), weights)
    return bilstm2d_compiled(x, weights).to(x.dtype)


def _torch(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor]) -> Tensor:
    B, H, W, C = x.shape

    # time first, as the kernels want it: each axis is copied once
    def columns(x: Tensor) -> Tensor:
        return _lstm(x.transpose(0, 1).reshape(H, B * W, C), vertical).view(H, B, W, -1).transpose(0, 1)

    def rows(x: Tensor) -> Tensor:
        return _lstm(x.permute(2, 0, 1, 3).reshape(W, B * H, C), horizontal).view(W, B, H, -1).permute(1, 2, 0, 3)

    return torch.cat(on_two_streams(x, columns, rows), dim=-1)


def _lstm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """nn.LSTM on sequences [T, N, C] -> [T, N, 2h], in training mode whenever a gradient may be asked for: cuDNN has no
    backward otherwise, and frozen stages are in eval mode. Without dropout the two modes are equal."""
    device = x.device.type
    autocast = is_autocast_enabled(device)
    if autocast and not _has_lstm(x.device, get_autocast_dtype(device)):
        with torch.autocast(device, enabled=False):
            return _lstm(x.float(), weights)
    state = x.new_zeros(2, x.shape[1], weights[1].shape[1])
    return torch.lstm(x, (state, state), list(weights), True, 1, 0.0, torch.is_grad_enabled(), True, False)[0]


def _has_lstm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the LSTM of `device` has a fused kernel for `dtype`, forward and backward."""
    if device.type != 'cuda' or not torch.backends.cudnn.is_available():
        return False  # oneDNN: float16 has no backward, bfloat16 depends on the processor
    if dtype == torch.bfloat16:
        return torch.backends.cudnn.version() >= 91300 and torch.cuda.get_device_capability(device)[0] >= 8
    return dtype == torch.float16


def _check(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor], backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r}: expected one of {", ".join(BACKENDS)}')
    if x.dim() != 4:
        raise ValueError(f'x has shape {tuple(x.shape)}: expected [B, H, W, C]')
    for name, weights in (('vertical', vertical), ('horizontal', horizontal)):
        if len(weights) != 8:
            raise ValueError(f'{name} has {len(weights)} tensors: expected the 8 of a bidirectional LSTM of one layer')
        h, shapes = vertical[1].shape[-1], [tuple(weight.shape) for weight in weights]
        expected = [(4 * h, x.shape[3]), (4 * h, h), (4 * h,), (4 * h,)] * 2
        if shapes != expected:
            raise ValueError(f'{name} has shapes {shapes}: expected {expected}')
