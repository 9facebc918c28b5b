"""BiLSTM2D through torch's LSTM; on a GPU both axes at once."""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from ..torch_versions import get_autocast_dtype, is_autocast_enabled, is_compiling


def bilstm2d_torch(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor]) -> Tensor:
    """`ops.bilstm2d` after its checks."""
    (B, H, W, C), h = x.shape, vertical[1].shape[1]

    # time first, as the kernels want it: each axis is copied once
    def columns(x: Tensor) -> Tensor:
        out = run_lstm(x.transpose(0, 1).reshape(H, B * W, C), vertical)  # [H, B * W, 2h]
        return out.view(H, B, W, 2 * h).transpose(0, 1)

    def rows(x: Tensor) -> Tensor:
        out = run_lstm(x.permute(2, 0, 1, 3).reshape(W, B * H, C), horizontal)
        return out.view(W, B, H, 2 * h).permute(1, 2, 0, 3)

    return torch.cat(_on_two_streams(x, columns, rows), dim=-1)


def _on_two_streams(
    x: Tensor, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """first(x) and second(x); on CUDA the second on a stream of its own, so that small kernels share the GPU.

    The second begins after everything that was queued before, and what the caller queues next waits for both. The
    backward pass follows: autograd runs each operation on the stream of its forward pass, and waits in between.
    """
    if x.device.type != 'cuda' or type(x) is not Tensor or is_compiling():
        return first(x), second(x)
    here, other = torch.cuda.current_stream(x.device), _other_stream(x.device)
    other.wait_stream(here)
    with torch.cuda.stream(other):
        out_second = second(x)
    out_first = first(x)
    here.wait_stream(other)
    out_second.record_stream(here)  # its memory is the other stream's, which may not reuse it before it was read here
    return out_first, out_second


@cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def run_lstm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """nn.LSTM on sequences [T, N, C] -> [T, N, 2h], in training mode whenever a gradient may be asked for: cuDNN has no
    backward otherwise, and frozen stages are in eval mode. Without dropout the two modes are equal."""
    device = x.device.type
    autocast = is_autocast_enabled(device)
    if autocast and not _has_lstm(x.device, get_autocast_dtype(device)):
        with torch.autocast(device, enabled=False):
            return run_lstm(x.float(), weights)
    state = x.new_zeros(2, x.shape[1], weights[1].shape[1])
    return torch.lstm(x, (state, state), list(weights), True, 1, 0.0, torch.is_grad_enabled(), True, False)[0]


def _has_lstm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the LSTM of `device` has a fused kernel for `dtype`, forward and backward."""
    if device.type != 'cuda' or not torch.backends.cudnn.is_available():
        return False  # oneDNN: float16 has no backward, bfloat16 depends on the processor
    if dtype == torch.bfloat16:
        return torch.backends.cudnn.version() >= 91300 and torch.cuda.get_device_capability(device)[0] >= 8
    return dtype == torch.float16
