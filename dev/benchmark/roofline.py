"""What no implementation can do without, and what the machine can do: the floor under an operator's time.

All counts of bytes and operations stand here. An operator reads its inputs and weights once and writes its outputs
once; its backward pass reads the inputs, the weights and the gradient of the output, and writes the gradients of
inputs and weights. A multiply-add is two operations. Exponentials, norms and additions are left out, so the floor is
low rather than high.
"""

import time
from typing import NamedTuple

import torch

__all__ = ['Ceilings', 'Work', 'attention_work', 'bilstm_work', 'elsa_work', 'floor_seconds', 'measure_ceilings']


class Work(NamedTuple):
    """Bytes and floating point operations of a pass.

    Attributes:
        read_written: bytes of the forward pass.
        operations: of the forward pass.
        backward_bytes, backward_operations: of the backward pass alone.
        scalar: the operations are no matrix products: they run at the rate of float32.
    """

    read_written: float
    operations: float
    backward_bytes: float
    backward_operations: float
    scalar: bool = False


class Ceilings(NamedTuple):
    """Rates of a machine: bytes read and written a second by a copy, operations a second of matrix products."""

    copy: float
    products: float
    float32_products: float


def elsa_work(batch: int, height: int, width: int, channels: int, heads: int, kernel_size: int, itemsize: int) -> Work:
    """The ELSA operator with an additive ghost head, from logits: two multiply-adds a tap and channel."""
    pixels, taps = batch * height * width, kernel_size**2
    v, logits, ghost = (itemsize * n for n in (pixels * channels, pixels * heads * taps, channels * taps))
    once = 2 * pixels * channels * taps  # one multiply-add a tap and channel
    # backward: two for the gradient of v, one each for those of the filters and of the ghost head
    return Work(2 * v + logits + ghost, 2 * once, 3 * v + 2 * logits + 2 * ghost, 4 * once, scalar=True)


def attention_work(batch: int, height: int, width: int, channels: int, heads: int, window: int, itemsize: int) -> Work:
    """Attention in windows (or grid groups) with both projections, from map to map."""
    padded = batch * (-(-height // window) * window) * (-(-width // window) * window)
    tokens = batch * height * width
    weights = 4 * channels**2 + 4 * channels + heads * (2 * window - 1) ** 2
    operations = 2 * (tokens * 4 * channels**2 + 2 * padded * window**2 * channels)
    map_ = tokens * channels
    return Work(itemsize * (2 * map_ + weights), operations, itemsize * (3 * map_ + 2 * weights), 2 * operations)


def bilstm_work(batch: int, height: int, width: int, channels: int, hidden: int, itemsize: int) -> Work:
    """Two bidirectional LSTMs and their joining layer, from map to map."""
    tokens = batch * height * width
    weights = 16 * hidden * (channels + hidden + 2) + 4 * hidden * channels + channels  # torch has two biases a gate
    operations = 2 * tokens * (16 * hidden * (channels + hidden) + 4 * hidden * channels)
    map_ = tokens * channels
    return Work(itemsize * (2 * map_ + weights), operations, itemsize * (3 * map_ + 2 * weights), 2 * operations)


def floor_seconds(work: Work, ceilings: Ceilings, backward: bool) -> float:
    """The longer of moving the bytes and of doing the operations; the sum over both passes with `backward`."""
    rate = ceilings.float32_products if work.scalar else ceilings.products
    passes = [(work.read_written, work.operations), (work.backward_bytes, work.backward_operations)]
    return sum(max(moved / ceilings.copy, done / rate) for moved, done in passes[: 1 + backward])


def measure_ceilings(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> Ceilings:
    """The best of `rounds` of a copy far larger than any cache, and of a large matrix product."""
    cuda = device.type == 'cuda'
    source = torch.ones((1 << 30 if cuda else 1 << 27) // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * 4 * source.numel() / _best(lambda: target.copy_(source), device, rounds)

    edge = 8192 if cuda else 1024

    def products(kind: torch.dtype) -> float:
        a, b = (torch.randn(edge, edge, device=device).to(kind) for _ in range(2))
        return 2 * edge**3 / _best(lambda: a @ b, device, rounds)

    float32 = products(torch.float32)
    return Ceilings(copy, float32 if dtype == torch.float32 else products(dtype), float32)


def _best(do, device: torch.device, rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):  # the first warms up
        start = time.perf_counter()
        do()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
