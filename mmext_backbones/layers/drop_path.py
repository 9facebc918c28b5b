"""Stochastic depth."""

from collections.abc import Sequence
from itertools import count
from numbers import Real

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drop a residual branch for whole samples, and scale the kept ones by 1 / (1 - rate), in training only.

    Source: Huang et al., "Deep Networks with Stochastic Depth" (arXiv 1603.09382).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    @property
    def active(self) -> bool:
        return self.training and self.rate > 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        keep = torch.rand([len(x)] + [1] * (x.dim() - 1), device=x.device) >= self.rate  # float32 even under autocast
        return x * (keep / (1.0 - self.rate)).to(x.dtype)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.3f}'


def drop_path_schedule(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that grow linearly from 0 to `rate` over all blocks of all stages, one list a stage.

    Raises:
        ValueError: if `rate` is no number in [0, 1).
    """
    if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 <= rate < 1.0:
        raise ValueError(f'drop_path_rate={rate!r}: expected a probability below 1')
    last = max(1, sum(depths) - 1)
    blocks = count()
    return [[rate * next(blocks) / last for _ in range(depth)] for depth in depths]
