"""Numbered batches: the images of a batch, and their augmentation, follow from the seed and its number.

A training that is resumed asks for batch 1000 and gets what the unbroken one had: from any number of loader processes,
and without loading the 1000 before it.
"""

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from torch.utils.data import DataLoader, IterableDataset, Sampler

__all__ = ['NumberedBatches', 'number_batches']


class Batch(list):
    """The indices of a batch, and where it stands: (epoch, position in the epoch), both counted from 0."""

    place: tuple[int, int]


class NumberedBatches(Sampler):
    """A batch sampler that numbers the batches of another one and starts at any of them.

    Args:
        batches: The other one.
        endless: For a loop that goes through the data again and again by itself, as mmengine's iteration-based one
            does: places are counted on from one iteration to the next, and a start may lie in a later epoch.
    """

    def __init__(self, batches: Iterable[list[int]], endless: bool) -> None:
        self.batches = batches
        self.endless = endless
        self.epoch = 0
        self.skip = 0

    def start_at(self, epoch: int, batch: int) -> None:
        """The next iteration starts at this batch, counted from the first one of this epoch."""
        self.epoch, self.skip = epoch, batch

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:  # batch_size and what else is asked of a batch sampler
        if name == 'batches':
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self.endless and self.epoch > 0 and hasattr(getattr(self.batches, 'sampler', None), 'set_epoch'):
                self.batches.sampler.set_epoch(self.epoch)
            count = 0
            for count, indices in enumerate(self.batches, 1):
                if count > self.skip:
                    batch = Batch(indices)
                    batch.place = (self.epoch, count - 1)
                    yield batch
            done = not self.endless or count == 0 or count > self.skip
            self.epoch += 1
            self.skip = max(0, self.skip - count)
            if done:
                return


def number_batches(loader: DataLoader, seed: int, *, endless: bool) -> NumberedBatches | None:
    """Makes a loader, which has not been used yet, load batches by number.

    Args:
        loader: It is changed.
        seed: Of the random changes to images; processes of a distributed training draw different ones.
        endless: As for `NumberedBatches`.

    Returns:
        The batch sampler it has now, to say where to start; None if its data has no order that can be kept.
    """
    if loader.batch_sampler is None or isinstance(loader.dataset, IterableDataset):
        return None
    batches = NumberedBatches(loader.batch_sampler, endless)
    vars(loader)['batch_sampler'] = batches  # the loader refuses a plain assignment, for the sake of those in use
    loader.dataset.__getitems__ = _Loading(loader.dataset, (seed, get_rank()))
    loader.generator = torch.Generator().manual_seed(seed)  # what loaders draw is not to move the model's generator
    return batches


class _Loading:
    """Loads the samples of a batch, with the generators of Python, numpy and torch seeded by its place."""

    def __init__(self, dataset: Any, seed: tuple[int, ...]) -> None:
        self.dataset = dataset
        self.load = getattr(dataset, '__getitems__', None)
        self.seed = seed

    def __call__(self, indices: list[int]) -> list:
        with _seeded(*self.seed, *indices.place):
            return self.load(indices) if self.load is not None else [self.dataset[index] for index in indices]


@contextlib.contextmanager
def _seeded(*entropy: int) -> Iterator[None]:
    """Draws from fresh generators inside; those outside stay as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = [int(word) for word in np.random.SeedSequence(entropy).generate_state(3)]
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])  # torch.manual_seed would seed the GPUs, too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
