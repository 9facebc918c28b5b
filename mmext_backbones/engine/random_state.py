"""A resumed run draws the random numbers that the unbroken one would have drawn."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from ..registry import HOOKS

__all__ = ['RandomStateHook']

KEY = 'mmext_random_state'


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Keeps the state of every random generator in the checkpoints and goes on from it.

    mmengine restores the model, the optimizer and the schedules, and skips the data that was seen; the generators
    start anew, so that sampling of regions, dropout and augmentation differ from an unbroken run's. Validation draws
    from a state of its own: a resumed run skips the one that followed its checkpoint.

    Of several processes each would need a state of its own, which mmengine's checkpoints have no place for: there this
    hook does nothing.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if get_world_size() == 1:
            checkpoint[KEY] = random_state()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get(KEY)

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if self._loaded is None or loop.iter == 0 or get_world_size() > 1:
            return  # weights alone were loaded
        if isinstance(loop, IterBasedTrainLoop):  # it skips the data that was seen after this
            loop.dataloader_iterator = _after(loop.dataloader_iterator, loop.iter, self._restore)

    def before_train_epoch(self, runner: Runner) -> None:
        if self._loaded is not None and runner.iter > 0 and not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._restore()

    def before_val(self, runner: Runner) -> None:
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        if self._before_val is not None:
            set_random_state(self._before_val)

    def _restore(self) -> None:
        if self._loaded is not None:
            set_random_state(self._loaded)
            self._loaded = None


def random_state() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, as tensors and plain values: safe mode reads them."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        'python': [version, torch.tensor(words), gauss],
        'numpy': [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        'torch': torch.get_rng_state(),
        'cuda': torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`. States of GPUs that are not here are left out."""
    version, words, gauss = state['python']
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if len(state['cuda']) == torch.cuda.device_count():
        for device, value in enumerate(state['cuda']):
            torch.cuda.set_rng_state(value.cpu(), device)


def _after(batches: Iterator, num: int, call: Callable[[], None]) -> Iterator:
    """The same batches; `call` is called once, before the one that follows the first `num`."""
    for _ in range(num):
        yield next(batches)
    call()
    yield from batches
