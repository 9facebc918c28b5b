"""Batches that follow from the seed and their number."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset, IterableDataset

from mmext_backbones.engine.resume.batches import number_batches


class Draws(Dataset):
    """Each sample: its index, and a number from each generator."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple:
        return index, random.random(), np.random.rand(), torch.rand(1).item()


def batches(kind: type, num: int, *, start: tuple[int, int] = (0, 0), workers: int = 0, seed: int = 1) -> list[tuple]:
    """The first `num` batches from `start`; an endless loop asks for another iteration when one is over."""
    data = Draws()
    loader = DataLoader(data, batch_size=4, sampler=kind(data, shuffle=True, seed=5), num_workers=workers)
    endless = kind is InfiniteSampler or start[0] == 0
    numbered = number_batches(loader, seed, endless=endless)
    numbered.start_at(*start)
    found = []
    while len(found) < num:
        for batch in loader:
            found.append(tuple(tuple(values.tolist()) for values in batch))
            if len(found) == num:
                break
    return found


@pytest.mark.parametrize('kind', [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_later_start_has_the_same_batches(kind, workers):
    """Also in a later epoch of three batches, and whoever loads them."""
    whole = batches(kind, 9)
    assert len({numbers for _, *draws in whole for values in draws for numbers in values}) == sum(
        3 * len(batch[0]) for batch in whole
    )  # no number is drawn twice
    for first in (1, 3, 5):
        assert batches(kind, 9 - first, start=(0, first), workers=workers) == whole[first:]
    assert [batch[0] for batch in batches(kind, 9, seed=2)] == [batch[0] for batch in whole]
    assert batches(kind, 1, seed=2)[0][1:] != whole[0][1:]


def test_an_epoch_that_is_over_has_no_batches():
    data = Draws()
    loader = DataLoader(data, batch_size=4)
    numbered = number_batches(loader, 0, endless=False)
    numbered.start_at(1, 3)
    assert list(loader) == []
    numbered.start_at(1, 2)
    assert [batch[0].tolist() for batch in loader] == [[8, 9]]
    assert len(list(loader)) == len(loader) == 3


def test_the_generators_outside_stay_as_they_are():
    loader = DataLoader(Draws(), batch_size=4)
    number_batches(loader, 0, endless=False)
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    list(loader)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == state


def test_data_without_an_order_is_left_alone():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(3))

    assert number_batches(DataLoader(Stream(), batch_size=2), 0, endless=False) is None
    assert number_batches(DataLoader(Draws(), batch_size=None), 0, endless=False) is None
