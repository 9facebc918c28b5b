"""The kernels in Triton against PyTorch's form of each pass: what `doctor` runs on a GPU.

Forward and backward passes of each in float32, float16 and bfloat16, on the small odd maps of `ops.self_check`: windows
that are whole, shifted and padded, a grid, ELSA's filters, norms with a gradient from elsewhere, GELUs of both kinds.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from ..ops.elsa import gpu as elsa
from ..ops.gpu_support import why_not_rows
from ..ops.layer_norm import gpu as layer_norm
from ..ops.norm_gelu import gpu as gelu
from ..ops.self_check import TOLERANCES, Launcher, compare
from ..ops.window_attention import gpu as windows

HEADS, HEAD_DIM, WINDOW, KERNEL = 2, 32, (7, 7), 7
C, N = HEADS * HEAD_DIM, WINDOW[0] * WINDOW[1]


class Case(NamedTuple):
    """An operator.

    Attributes:
        name: as printed.
        why_not: from device and type, why it cannot run, or None.
        passes: from a type, its directions, and for each arguments of the kind that is checked.
    """

    name: str
    why_not: Callable[[torch.device, torch.dtype], str | None]
    passes: Callable[[torch.dtype], Iterator[tuple[Launcher, tuple]]]


def check_kernels(device: torch.device) -> list[str]:
    """Runs every kernel that takes the device; returns what was found equal, one item an operator, form and type.

    Raises:
        RuntimeError: naming operator, type and tensor, where a kernel cannot run or gives other numbers.
    """
    checked = []
    for case in CASES:
        for dtype in TOLERANCES:
            name = f'{case.name} in {dtype}'
            if (reason := case.why_not(device, dtype)) is not None:
                raise RuntimeError(f'{name}: {reason}')
            for launcher, args in case.passes(dtype):
                if (fault := compare(launcher, device, args)) is not None:
                    raise RuntimeError(f'{name}: {fault}')
            checked.append(name)
    return checked


def _windows(name: str, size: tuple[int, int], shift_size: int, grid: bool, padded: bool) -> Case:
    def passes(dtype: torch.dtype) -> Iterator[tuple[Launcher, tuple]]:
        qkv, padding = torch.empty(1, *size, 3 * C, dtype=dtype), torch.empty(3 * C, dtype=dtype) if padded else None
        args = qkv, torch.empty(HEADS, N, N), padding, HEADS, WINDOW, HEAD_DIM**-0.5, shift_size, grid
        yield windows.FORWARD, args
        yield windows.BACKWARD, (qkv, *args)

    return Case(name, partial(windows.why_not, head_dim=HEAD_DIM, tokens=N), passes)


def _elsa(dtype: torch.dtype) -> Iterator[tuple[Launcher, tuple]]:
    v, logits = torch.empty(1, 3, 4, C, dtype=dtype), torch.empty(1, 3, 4, HEADS * KERNEL**2, dtype=dtype)
    add = torch.empty(C, KERNEL, KERNEL)
    yield elsa.FORWARD, (v, logits, add, HEADS, KERNEL)
    yield elsa.BACKWARD, (v, v, logits, torch.empty(1, 3, 4, HEADS), add, HEADS, KERNEL, [True] * 3)


def _layer_norm(dtype: torch.dtype) -> Iterator[tuple[Launcher, tuple]]:
    x, weight = torch.empty(3, C), torch.empty(C)
    yield layer_norm.FORWARD, (x, weight, weight, 1e-5, dtype)
    yield layer_norm.BACKWARD, (x.to(dtype), x, weight, weight, x, 1e-5, True)


def _gelu(dtype: torch.dtype) -> Iterator[tuple[Launcher, tuple]]:
    x = torch.empty(3, C, dtype=dtype)
    for tanh in (False, True):
        yield gelu.BACKWARD, (x, x, tanh, True)


CASES = [
    _windows('window attention', (14, 14), 0, False, False),
    _windows('window attention, shifted and padded', (9, 12), 3, False, True),
    _windows('grid attention', (9, 12), 0, True, False),
    Case('elsa', elsa.why_not, _elsa),
    Case('layer norm', partial(why_not_rows, layer_norm.KERNEL), _layer_norm),
    Case('gelu', partial(why_not_rows, gelu.KERNEL), _gelu),
]
