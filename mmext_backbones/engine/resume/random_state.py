"""A hook that keeps the random state, so that a resumed run draws the numbers of an unbroken one."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from ...registry import HOOKS

__all__ = ['RandomStateHook', 'random_state', 'set_random_state']

KEY = 'mmext_random_state'


@HOOKS.register_module()
class RandomStateHook(Hook):
    """Keeps the state of every random generator of every process in the checkpoints and goes on from it.

    mmengine restores the model, the optimizer and the schedules; the generators start anew, so that sampling of regions
    and dropout differ from an unbroken run's. Validation draws from a state of its own, so that it makes no difference
    whether it is repeated.

    With several processes, a runner of this package calls `before_save_on_all_processes`; any other runner keeps the
    state of the first process alone, and nothing is restored.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before_val: dict[str, Any] | None = None
        self._gathered: list[dict[str, Any]] | None = None

    def before_save_on_all_processes(self, runner: Runner) -> None:
        self._gathered = all_gather_object(self._state())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[KEY] = self._gathered or [self._state()]
        self._gathered = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        states = checkpoint.get(KEY) or []
        states = [states] if isinstance(states, dict) else states  # of one process, as it was kept at first
        if states and len(states) != get_world_size():
            runner.logger.warning(
                f'The checkpoint has the random states of {len(states)} processes, and {get_world_size()} run now: '
                'random choices will differ from those of the run before.'
            )
            states = []
        self._loaded = states[get_rank()] if states else None

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0:
            self._loaded = None  # weights alone were loaded
        self._restore()  # for what is saved before the first iteration

    def before_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self._restore()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        self._restore()  # after all that a start draws
        self._loaded = None

    def before_val(self, runner: Runner) -> None:
        self._before_val = random_state()

    def after_val(self, runner: Runner) -> None:
        if self._before_val is not None:
            set_random_state(self._before_val)
        self._before_val = None

    def _state(self) -> dict[str, Any]:
        return random_state() if self._before_val is None else self._before_val

    def _restore(self) -> None:
        if self._loaded is not None:
            set_random_state(self._loaded)


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
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state['torch'].cpu())
    if len(state['cuda']) == torch.cuda.device_count():
        for device, value in enumerate(state['cuda']):
            torch.cuda.set_rng_state(value.cpu(), device)
