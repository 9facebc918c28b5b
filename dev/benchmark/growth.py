"""How time grows with the image and with the batch: time ~ pixels^a and time ~ images^a."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from .case import Case, Setting, randomise
from .timing import Pass, Spread, interleave, spread

__all__ = ['exponent', 'grow']


def exponent(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """The a of seconds ~ amounts^a: the slope of the least-squares line through the logarithms.

    Raises:
        ValueError: for fewer than two different amounts.
    """
    x, y = ([math.log(value) for value in values] for values in (amounts, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    width = sum((a - mean_x) ** 2 for a in x)
    if width == 0:
        raise ValueError(f'amounts={list(amounts)}: expected at least two that differ')
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / width


def grow(
    case: Case,
    arch: str,
    edges: Sequence[int],
    batches: Sequence[int],
    mode: str,
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
    warmup: int,
) -> dict[str, Any]:
    """Times ours on square images of every edge, one at a time, and on every batch of images of the smallest edge.

    Returns:
        ready for JSON: `by_edge` and `by_batch`, each with the seconds of every round under its edge or batch, the
        median, and the exponent with its quartiles over the rounds; None where one edge or one batch was asked for.
    """
    smallest = min(edges)
    # the first peer decides on options and output norms
    setting = Setting(case.archs[arch], (smallest, smallest))
    torch.manual_seed(0)
    model = randomise(case.ours(setting, case.peers[0])).to(device)

    def line(settings: dict[int, Setting], amount) -> dict[str, Any] | None:
        if len(settings) < 2:
            return None
        passes = {
            key: Pass(model, [tensor.to(device) for tensor in case.inputs(one)], mode, dtype)
            for key, one in settings.items()
        }
        seconds = interleave(passes, rounds, warmup, device)
        amounts = [amount(key) for key in settings]
        slopes: Spread = spread([exponent(amounts, times) for times in zip(*seconds.values(), strict=True)])
        medians = {key: spread(times).median for key, times in seconds.items()}
        return {'seconds': seconds, 'median': medians, 'exponent': slopes._asdict()}

    return {
        'case': case.name,
        'title': case.title,
        'arch': arch,
        'mode': mode,
        'dtype': str(dtype).removeprefix('torch.'),
        'by_edge': line({edge: setting._replace(size=(edge, edge)) for edge in edges}, lambda edge: edge**2),
        'by_batch': line({batch: setting._replace(batch=batch) for batch in batches}, lambda batch: batch),
    }
