"""What hooks count, kept in checkpoints: a resumed training stops early where an unbroken one would.

A checkpoint is written before the validation of its iteration. So what the validation changed, if it came to its end,
is noted in a file of its own in the work dir, and read again by a training that goes on from that checkpoint.
"""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.optim import ReduceOnPlateauParamScheduler
from mmengine.runner import Runner

from ...registry import HOOKS
from ...utils.attempts import MayFail
from ...utils.files import in_place
from ...weights.loading import read_file

__all__ = ['VALIDATED', 'HookStateHook', 'finished_validation', 'note_validation']

KEY = 'mmext_hooks'
VALIDATED = 'last_validation'  # the file in the work dir about the last complete validation


@HOOKS.register_module()
class HookStateHook(Hook):
    """Keeps the state of other hooks in the checkpoints of a training, and gives it back to a resumed one.

    These are mmengine's `EarlyStoppingHook` and its children (all they have counted or measured), and any hook with
    methods ``state_dict`` and ``load_state_dict``, of plain values and tensors. What other hooks need mmengine keeps
    itself: averages of weights, best scores, histories of losses.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[KEY] = _states(runner)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        loaded = checkpoint.get(KEY)
        self._loaded = loaded if isinstance(loaded, Mapping) else {}

    def before_train(self, runner: Runner) -> None:
        _drop_later_note(runner)
        if runner.iter == 0:  # weights alone were loaded
            return
        note = finished_validation(runner) or {}
        with MayFail(f'what the validation after iteration {runner.iter} found'):
            for key, value in note.get('infos', {}).items():
                runner.message_hub.update_info(key, value)
            runner.message_hub.log_scalars.update(note.get('scalars', {}))
        _restore(runner, note.get('hooks', self._loaded))


def note_validation(runner: Runner) -> None:
    """Notes that the validation at this iteration came to its end, and what it changed."""
    infos = {key: value for key, value in runner.message_hub.runtime_info.items() if key.startswith('best_')}
    scalars = {key: value for key, value in runner.message_hub.log_scalars.items() if key.startswith('val/')}
    note = {'iter': runner.iter, 'seed': runner.seed, 'hooks': _states(runner), 'infos': infos, 'scalars': scalars}
    with in_place(Path(runner.work_dir, VALIDATED)) as partial:
        torch.save(note, partial)


def finished_validation(runner: Runner) -> dict[str, Any] | None:
    """The note of the last validation, if it is of the iteration that a training goes on from; called by all processes.

    It does not count with a schedule that follows the metrics: what that did to the learning rates is not noted.
    """
    notes = [_read_note(Path(runner.work_dir, VALIDATED)) if is_main_process() else None]
    if get_world_size() > 1:
        broadcast_object_list(notes)
    note = notes[0]
    if note is None or note['iter'] != runner.iter or note.get('seed', runner.seed) != runner.seed:
        return None
    schedulers = getattr(runner, 'param_schedulers', None) or []
    lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers]
    plateau = any(isinstance(each, ReduceOnPlateauParamScheduler) for schedules in lists for each in schedules)
    return None if plateau else note


def _read_note(path: Path) -> dict[str, Any] | None:
    """None for a file that is not there, or damaged: the validation is made up for then."""
    try:
        with path.open('rb') as file:
            start = file.read(32)
        if not start.startswith(b'PK'):  # of an earlier version: the number of the iteration alone
            return {'iter': int(start)}
        note = read_file(str(path), 'cpu')
        parts = (note[name] for name in ('hooks', 'infos', 'scalars'))
        return note if isinstance(note['iter'], int) and all(isinstance(part, Mapping) for part in parts) else None
    except Exception:  # whatever a damaged file leads to
        return None


def _drop_later_note(runner: Runner) -> None:
    """Removes a note of a training that this one repeats."""
    path = Path(runner.work_dir, VALIDATED)
    note = _read_note(path) if is_main_process() else None
    if note is not None and note['iter'] > runner.iter:
        path.unlink()


def _named_hooks(runner: Runner) -> Iterator[tuple[str, Hook]]:
    """Hooks by the names of their classes, later ones of a class with a number."""
    counts: dict[str, int] = {}
    for hook in runner.hooks:
        name = type(hook).__name__
        counts[name] = counts.get(name, 0) + 1
        yield name if counts[name] == 1 else f'{name} {counts[name]}', hook


def _keeps_state(hook: Hook) -> bool:
    return all(callable(getattr(hook, name, None)) for name in ('state_dict', 'load_state_dict'))


def _states(runner: Runner) -> dict[str, Any]:
    states = {'stopped': bool(getattr(runner.train_loop, 'stop_training', False)), 'hooks': {}}
    for name, hook in _named_hooks(runner):
        with MayFail(f'the state of {name} in checkpoints'):
            if _keeps_state(hook):
                states['hooks'][name] = _plain(hook.state_dict())
            elif isinstance(hook, EarlyStoppingHook):
                states['hooks'][name] = _counted(hook)
    return states


def _counted(hook: Hook) -> dict[str, Any]:
    """Numbers, texts and flags of a hook: what it was given, and what it has counted since."""
    given = {name for base in type(hook).__mro__ for name in inspect.signature(base.__init__).parameters}
    values = {}
    for name, value in vars(hook).items():
        value = value.item() if isinstance(value, (np.generic, torch.Tensor)) else value
        if isinstance(value, (int, float, str, type(None))):
            values[name] = value
    return {
        'given': {name: value for name, value in values.items() if name in given},
        'counted': {name: value for name, value in values.items() if name not in given},
    }


def _restore(runner: Runner, states: Mapping[str, Any]) -> None:
    kept = states.get('hooks', {})
    same = True  # whether those that may end a training are as they were
    kept = kept if isinstance(kept, Mapping) else {}
    for name, hook in _named_hooks(runner):
        with MayFail(f'the state of {name}'):
            if _keeps_state(hook):
                if name in kept:
                    hook.load_state_dict(kept[name])
            elif isinstance(hook, EarlyStoppingHook):
                same &= name in kept and kept[name]['given'] == _counted(hook)['given']
                vars(hook).update(kept[name]['counted'] if name in kept else {})
    if states.get('stopped') and same and kept:
        runner.train_loop.stop_training = True
        runner.logger.info('The training had been stopped early at this place: there is nothing to go on with.')


def _plain(value: Any) -> Any:
    """Tensors and plain values, which are read safely.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value] if isinstance(value, list) else tuple(map(_plain, value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bool, int, float, complex, str, bytes, type(None), torch.Tensor)):
        return value
    raise TypeError(f'a {type(value).__name__} is neither a tensor nor a plain value')
