"""A pass of one side, and interleaved rounds of it."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ['DTYPES', 'MODES', 'Pass', 'Spread', 'fixed_gradients', 'interleave', 'spread']

MODES = ('forward', 'forward+backward')
DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}  # the latter two by autocast


class Pass:
    """One pass of a module over fixed inputs; calling it does the work and returns the outputs.

    'forward' runs in eval mode without gradients; 'forward+backward' in train mode from fixed random gradients of the
    outputs to those of the parameters and, with `differentiable`, of the inputs. The first call is made here: it finds
    the shapes and types of the outputs.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[Tensor], mode: str, dtype: torch.dtype, differentiable: bool = False
    ) -> None:
        self.module, self.mode, self.dtype = module, mode, dtype
        self.device = inputs[0].device
        self.backward = mode == 'forward+backward'
        wanted = differentiable and self.backward
        self.inputs = [tensor.detach().requires_grad_(wanted) for tensor in inputs]
        module.train(self.backward)
        self.gradients: list[Tensor] = []
        if self.backward:
            with torch.no_grad():
                self.gradients = fixed_gradients(self._forward())

    def __call__(self) -> list[Tensor]:
        if not self.backward:
            with torch.no_grad():
                return self._forward()
        for tensor in (*self.inputs, *self.module.parameters()):
            tensor.grad = None
        outs = self._forward()
        torch.autograd.backward(outs, self.gradients)
        return outs

    def _forward(self) -> list[Tensor]:
        kind = self.device.type
        with nullcontext() if self.dtype == torch.float32 else torch.autocast(kind, self.dtype):
            outs = self.module(*self.inputs)
        return [outs] if isinstance(outs, Tensor) else list(outs)


def fixed_gradients(outs: Sequence[Tensor]) -> list[Tensor]:
    """Normal numbers in the shapes and types of `outs`, the same for equal shapes."""
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(out.shape, generator=generator).to(out.device, out.dtype) for out in outs]


def interleave(
    passes: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int,
    device: torch.device,
    flush: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every pass, one of each a round, in turns: neither is always the first.

    Args:
        passes: what is timed, by name.
        rounds: that count.
        warmup: rounds before them.
        device: where the work is done; on CUDA the time is taken by events between two synchronisations.
        flush: called before each pass and not timed.
    """
    clock = _cuda_seconds if device.type == 'cuda' else _seconds
    names = list(passes)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for i in range(warmup + rounds):
        for name in names if i % 2 else reversed(names):
            if flush is not None:
                flush()
            taken = clock(passes[name])
            if i >= warmup:
                seconds[name].append(taken)
    return seconds


def flusher(device: torch.device) -> Callable[[], object]:
    """Reads and writes more memory than the caches hold, so that an operator finds nothing of its own there."""
    scratch = torch.zeros((1 << 28) // 4, device=device)
    return lambda: scratch.add_(1)


def _seconds(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def _cuda_seconds(do: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    do()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @property
    def tie(self) -> bool:
        """Of ratios: the quartiles lie on both sides of 1."""
        return self.low <= 1 <= self.high


def spread(values: Sequence[float]) -> Spread:
    low, median, high = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return Spread(median.item(), low.item(), high.item())
