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

__all__ = ['examine', 'random_state_kept', 'spread']


class _Samples(Dataset):
    """The faults of each sample in the place of its data, and the pixels of each label of its map."""

    def __init__(self, guard: Any, fast: bool, notes: bool, most: int | None) -> None:
        self.guard = guard
        self.fast = fast
        self.notes = notes
        self.indices = spread(len(guard.dataset), most or len(guard.dataset))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[list[Fault], np.ndarray | None]:
        faults = self._faults(self.indices[index])
        return faults, None if self.fast or faults else self.guard.counts

    def _faults(self, index: int) -> list[Fault]:
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
    most: int | None = None,
    maps: list[np.ndarray] | None = None,
) -> list[list[Fault]]:
    """The faults of each sample, in order.

    Args:
        guard: Of the data set.
        workers: Processes that read; 0 for this one.
        fast: Look at the files without decoding them.
        notes: Tell what is unusual, too.
        progress: Called as progress(done, total) after each sample.
        most: Samples to look at, evenly spread; all of them when None.
        maps: Gets the pixels of each label, 0 to 255, of every map that was read.
    """
    samples = _Samples(guard, fast, notes, most)
    guard.counting = maps is not None
    found: list[list[Fault]] = []
    with random_state_kept():
        # its own generator: the loader draws from the global one otherwise
        for faults, counts in DataLoader(samples, batch_size=None, num_workers=workers, generator=torch.Generator()):
            if maps is not None and counts is not None:
                maps.append(np.asarray(counts))
            found.append([Fault(*fault) for fault in faults])
            if progress is not None:
                progress(len(found), len(samples))
    return found


def spread(number: int, most: int) -> list[int]:
    """At most `most` indices below `number`, evenly spread."""
    return list(range(number)) if number <= most else np.linspace(0, number - 1, most).astype(int).tolist()


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Python's, numpy's and torch's generators go on afterwards as if nothing had been drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
