"""Runs two computations at once on a GPU."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .torch_versions import is_compiling


def on_two_streams(
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
