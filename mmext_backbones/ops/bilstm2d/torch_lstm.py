"""BiLSTM2D through torch's LSTM; on a GPU both axes at once.

torch.compile takes torch's LSTM apart into one set of operations a time step, which on a GPU would be hundreds of
thousands for a network. There the LSTM is one node, an operator of the dispatcher around the same call of cuDNN. It
keeps its inputs alone: the backward pass runs the LSTM forward again.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from ..derivatives import first_order
from ..dispatcher import constant_in_graphs, gradients, register
from ..torch_versions import get_autocast_dtype, is_autocast_enabled, is_compiling


def bilstm2d_torch(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor]) -> Tensor:
    """`ops.bilstm2d` after its checks."""
    (B, H, W, C), h = x.shape, vertical[1].shape[1]
    x = _in_its_type(x)  # before it is copied for both axes

    # time first, as the kernels want it: each axis is copied once
    def columns(x: Tensor) -> Tensor:
        out = run_lstm(x.transpose(0, 1).reshape(H, B * W, C), vertical)  # [H, B * W, 2h]
        return out.view(H, B, W, 2 * h).transpose(0, 1)

    if _has_two_streams(x):
        # PyTorch warns where a weight's gradient comes from another stream than that on which DDP first saw the weight:
        # a view that is made here takes it over
        horizontal = [weight.view_as(weight) for weight in horizontal]

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
    if not _has_two_streams(x):
        return first(x), second(x)
    here, other = torch.cuda.current_stream(x.device), _other_stream(x.device)
    other.wait_stream(here)
    x.record_stream(other)  # the rows are a view of it, which the backward pass reads on the other stream
    with torch.cuda.stream(other):
        out_second = second(x)
    out_first = first(x)
    here.wait_stream(other)
    out_second.record_stream(here)  # its memory is the other stream's, which may not reuse it before it was read here
    return out_first, out_second


def _has_two_streams(x: Tensor) -> bool:
    return x.device.type == 'cuda' and type(x) is Tensor and not is_compiling()


@cache
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def run_lstm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """nn.LSTM on sequences [T, N, C] -> [T, N, 2h]. Autocast lowers its type where the device has a kernel for that."""
    device, x = x.device.type, _in_its_type(x)
    if is_compiling() and device != 'cpu':
        return _LSTM.apply(x, *weights)
    as_it_is = is_autocast_enabled(device) and x.dtype == torch.float32
    with torch.autocast(device, enabled=False) if as_it_is else nullcontext():
        return _lstm(x, weights)


def _in_its_type(x: Tensor) -> Tensor:
    return x.to(lstm_dtype(x))


def lstm_dtype(x: Tensor) -> torch.dtype:
    """The type that the LSTM computes in: that of x, or under autocast that of autocast or float32."""
    device = x.device.type
    if x.dtype == torch.float64 or not is_autocast_enabled(device):
        return x.dtype
    dtype = get_autocast_dtype(device)
    return dtype if _has_lstm(x.device, dtype) else torch.float32


def _lstm(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """torch's LSTM, in training mode whenever a gradient may be asked for: cuDNN has no backward otherwise, and frozen
    stages are in eval mode. Without dropout the two modes are equal."""
    state = x.new_zeros(2, x.shape[1], weights[1].shape[1])
    return torch.lstm(x, (state, state), list(weights), True, 1, 0.0, torch.is_grad_enabled(), True, False)[0]


@constant_in_graphs
def _has_lstm(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the LSTM of `device` has a fused kernel for `dtype`, forward and backward."""
    if device.type != 'cuda' or not torch.backends.cudnn.is_available():
        return False  # oneDNN: float16 has no backward, bfloat16 depends on the processor
    if dtype == torch.bfloat16:
        return torch.backends.cudnn.version() >= 91300 and torch.cuda.get_device_capability(device)[0] >= 8
    return dtype == torch.float16


def _by_itself(x: Tensor, *weights: Tensor) -> Tensor:
    """`_lstm` in the type of x. Wider weights are left to autocast, which gathers them in one piece of memory."""
    device = x.device.type
    narrow = x.dtype != weights[0].dtype
    with torch.autocast(device, x.dtype) if narrow else torch.autocast(device, enabled=False):
        return _lstm(x, weights)


def _forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return _by_itself(x, *weights)


def _backward(grad: Tensor, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The gradient of x, and those of all weights behind one another."""
    grad_x, *grads = gradients(_by_itself, (x, *weights), grad)
    return grad_x.contiguous(), torch.cat([each.flatten() for each in grads])


def _fake_forward(x, weights):
    return x.new_empty(*x.shape[:2], 2 * weights[1].shape[1])


def _fake_backward(grad, x, weights):
    return x.new_empty(x.shape), weights[0].new_empty(sum(weight.numel() for weight in weights))


_DEVICES = ('CompositeExplicitAutograd',)  # all
register('lstm', '(Tensor x, Tensor[] weights) -> Tensor', _forward, _fake_forward, _DEVICES)
_BACKWARD = '(Tensor grad, Tensor x, Tensor[] weights) -> (Tensor, Tensor)'
register('lstm_backward', _BACKWARD, _backward, _fake_backward, _DEVICES)


class _LSTM(torch.autograd.Function):
    """`run_lstm` as one node, for recorded networks."""

    @staticmethod
    def forward(ctx, x, *weights):
        ctx.save_for_backward(x, *weights)
        return torch.ops.mmext_backbones.lstm(x, list(weights))

    @staticmethod
    @first_order
    def backward(ctx, grad):
        x, *weights = ctx.saved_tensors
        grad_x, flat = torch.ops.mmext_backbones.lstm_backward(grad, x, weights)
        grads = flat.split([weight.numel() for weight in weights])
        return grad_x, *(each.view(weight.shape) for each, weight in zip(grads, weights, strict=True))
