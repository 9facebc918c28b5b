"""Reads every sample of a guarded data set once."""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .images import image_notes
from .kinds import Fault

__all__ = ['examine']


class _Samples(Dataset):
    """The faults of each sample in the place of its data."""

    def __init__(self, guard: Any, fast: bool, notes: bool) -> None:
        self.guard = guard
        self.fast = fast
        self.notes = notes

    def __len__(self) -> int:
        return len(self.guard.dataset)

    def __getitem__(self, index: int) -> list[Fault]:
        if self.fast:
            info = self.guard.dataset.get_data_info(index)
            fault = self.guard.look(info)
        else:
            info, fault = None, self.guard.examine(index)[1]
        if fault is not None:
            return [fault]
        if not self.notes:
            return []
        path = (info or self.guard.dataset.get_data_info(index)).get('img_path')
        return image_notes(path) if isinstance(path, str) and '://' not in path else []


def examine(
    guard: Any,
    *,
    workers: int = 0,
    fast: bool = False,
    notes: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Fault]]:
    """The faults of each sample, in order.

    Args:
        guard: Of the data set.
        workers: Processes that read; 0 for this one.
        fast: Look at the files without decoding them.
        notes: Tell what is unusual, too.
        progress: Called as progress(done, total) after each sample.
    """
    samples = _Samples(guard, fast, notes)
    found: list[list[Fault]] = []
    with _random_state_kept():
        # its own generator: the loader draws from the global one otherwise
        for faults in DataLoader(samples, batch_size=None, num_workers=workers, generator=torch.Generator()):
            found.append([Fault(*fault) for fault in faults])
            if progress is not None:
                progress(len(found), len(samples))
    return found


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Python's, numpy's and torch's generators go on afterwards as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
