"""Compares an exported file with its network, in numbers and speed."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .recording import SMALLEST

TOLERANCE = 1e-4  # of the largest value of a map; float32 summed in another order differs by about 1e-6

Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Difference:
    """The largest difference of a map.

    Attributes:
        size: (H, W) of the images in pixels.
        name: Of the map.
        absolute: Of two elements.
        relative: That by the largest absolute value of the network's own map.
    """

    size: tuple[int, int]
    name: str
    absolute: float
    relative: float


class ParityError(RuntimeError):
    """A file that computes something else than its network."""


def sizes_to_check(size: tuple[int, int], dynamic: bool) -> list[tuple[int, int]]:
    """The size itself and, where others are allowed, two with odd edges, which no window and no stride divides."""
    H, W = size
    others = [(max(SMALLEST, H * 5 // 8) | 1, W * 9 // 8 | 1), (H * 4 // 3 | 1, max(SMALLEST, W // 2) | 1)]
    return [size, *others] if dynamic else [size]


def differences(
    ours: nn.Module, theirs: Run, sizes: Sequence[tuple[int, int]], channels: int, batches: Sequence[int] = (1,)
) -> list[Difference]:
    """Runs both on the same random images.

    Args:
        ours: The network, in eval mode.
        theirs: The file.
        sizes: Of the images.
        channels: Of the images.
        batches: Images of a batch, taken in turn with the sizes.
    """
    rows = []
    generator = torch.Generator().manual_seed(0)
    for i, size in enumerate(sizes):
        x = torch.randn(batches[i % len(batches)], channels, *size, generator=generator)
        with torch.no_grad():
            expected = ours(x)
        actual = theirs(x)
        if [tuple(out.shape) for out in actual] != [tuple(out.shape) for out in expected]:
            shapes = [[tuple(out.shape) for out in outs] for outs in (actual, expected)]
            raise ParityError(f'at {size[0]} x {size[1]} the file returns maps of {shapes[0]}: expected {shapes[1]}')
        for n, (a, e) in enumerate(zip(actual, expected, strict=True)):
            absolute = (a - e).abs().max().item()
            rows.append(Difference(size, f'map{n}', absolute, absolute / max(e.abs().max().item(), 1e-30)))
    return rows


def table(rows: Sequence[Difference]) -> list[str]:
    """Lines for a person."""
    lines = [f'{"image":>12}  {"map":6}{"max absolute":>14}{"max relative":>14}']
    lines += [
        f'{"x".join(map(str, row.size)):>12}  {row.name:6}{row.absolute:>14.1e}{row.relative:>14.1e}' for row in rows
    ]
    return lines


def check_parity(rows: Sequence[Difference], tolerance: float) -> None:
    """Raises ParityError where a map differs by more than `tolerance` of its largest value, or is not finite."""
    wrong = [row for row in rows if not row.relative <= tolerance]  # not-a-number is wrong too
    if wrong:
        worst = wrong[0]
        raise ParityError(
            f'{len(wrong)} of {len(rows)} maps differ from the network by more than {tolerance:g} of their largest '
            f'value, {worst.name} at {worst.size[0]} x {worst.size[1]} by {worst.relative:.1e}'
        )


def speed(ours: nn.Module, theirs: Run, x: Tensor, repeats: int = 7) -> tuple[float, float]:
    """Median seconds of the network and of the file on x, run in turn."""
    times = ([], [])
    with torch.no_grad():
        for n in range(repeats + 1):
            for run, seconds in zip((ours, theirs), times, strict=True):
                start = time.perf_counter()
                run(x)
                if n:  # the first is for caches
                    seconds.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
