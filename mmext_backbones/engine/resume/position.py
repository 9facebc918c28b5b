"""Finds the checkpoint to resume from, and the place in the data that it stands for."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from mmengine.runner.base_loop import BaseLoop

from ...registry import HOOKS
from ...utils.attempts import MayFail
from ...utils.errors import UserError
from ...utils.files import read_path
from ...weights.loading import read_file
from .checkpoint_hook import LAST
from .hook_state import finished_validation, note_validation

__all__ = ['PositionHook', 'find_checkpoint']

KEY = 'mmext_position'


def find_checkpoint(work_dir: str | Path, say: Callable[[str], None]) -> str | None:
    """The checkpoint to resume from: the last one, or the newest that is whole if that one is damaged or gone.

    Args:
        work_dir: Of the run.
        say: Told what is damaged and what is taken instead.

    Returns:
        Its path, or None if there is no checkpoint at all.

    Raises:
        UserError: if there are checkpoints, and none of them can be resumed from.
    """
    problems: list[str] = []
    note = Path(work_dir, LAST)
    last = read_path(note)
    if '://' in last or _has_files(last):  # elsewhere, or a folder of DeepSpeed
        return last
    if last or note.is_file():
        problem = _problem(last) if last else f'{note} names no checkpoint: it is empty or damaged'
        if problem is None:
            return last
        problems.append(problem)
        say(f'The last checkpoint cannot be resumed: {problem}')
    found: dict[str, int] = {}
    folders = dict.fromkeys([Path(last).parent if last else Path(work_dir), Path(work_dir)])
    for path in (str(path) for folder in folders for path in sorted(folder.glob('*.pth')) if str(path) != last):
        try:
            content = _read(path, compare=False)
        except (UserError, OSError) as error:
            problems.append(_reason(path, error))
            continue
        # weights that somebody put there have no place, and the best checkpoints no optimizer: they are to be tested
        place = _place(content)
        if place is not None and ('optimizer' in content or 'optim_wrapper' in content):
            found[path] = place
    for path in sorted(found, key=found.get, reverse=True):
        problem = _problem(path)
        if problem is None:
            say(f'The newest whole checkpoint is {path}, of iteration {found[path]}: going on from there.')
            return path
        problems.append(problem)
    if problems:
        lines = '\n  '.join(problems)
        raise UserError(
            f'there are checkpoints in {work_dir}, and the training cannot go on from any of them:\n  {lines}\n'
            'Nothing was changed. To begin anew, leave --resume out, with another --work-dir to keep these files.'
        )
    return None


def _has_files(path: str) -> bool:
    return bool(path) and Path(path).is_dir() and any(file.is_file() for file in Path(path).rglob('*'))


def _problem(path: str) -> str | None:
    """Why a training cannot go on from this file; None if it can."""
    if Path(path).is_dir():
        return f'{path} is an empty folder'
    if not Path(path).is_file():
        return f'{path}: there is no such file'
    try:
        place = _place(_read(path))
    except (UserError, OSError) as error:  # torch looks for the end of a file that has none
        return _reason(path, error)
    return f'{path} does not say of which iteration it is' if place is None else None


def _place(content: Any) -> int | None:
    """The iteration that a checkpoint says it is of."""
    meta = content.get('meta') if isinstance(content, Mapping) else None
    place = meta.get('iter') if isinstance(meta, Mapping) else None
    return place if isinstance(place, int) and not isinstance(place, bool) and place >= 0 else None


def _read(path: str, *, compare: bool = True) -> Any:
    if Path(path).is_dir():
        raise UserError(f'{path} is a folder')
    return read_file(path, 'cpu', mmap=True, compare=compare)


def _reason(path: str, error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f'{path} cannot be read: {error}'


@HOOKS.register_module()
class PositionHook(Hook):
    """Starts a resumed training at the batch that comes next, also within an epoch.

    A validation that was due at the checkpoint and was not finished is made up for first. Its runner numbers the
    batches of the training, see `ResumableRun`; batches of a loader that cannot number them are skipped by loading them
    in an iteration-based loop, and an epoch begins anew in an epoch-based one, as mmengine does it.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}
        self._validated_at: int | None = None  # iteration of the last complete validation
        self._done = 0  # batches of the first epoch
        self._may_fail = MayFail('the note of the last validation')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[KEY] = {
            'batches': len(runner.train_dataloader),
            'processes': get_world_size(),
            'validated': self._validated_at,
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get(KEY) or {}

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if runner.iter == 0 or not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
            return
        batches = getattr(runner, 'numbered_batches', None)
        if isinstance(loop, IterBasedTrainLoop):
            # a loop of onedl-mmengine may be told to skip nothing
            if batches is not None and not getattr(loop, 'fast_forward_on_resume', False):
                free = loop.iter if runner.first_batch == loop.iter else 0
                loop.dataloader_iterator = _Skipping(loop.dataloader_iterator, free)
        elif batches is not None:
            self._done = self._batches_done(runner)
        if self._done == 0 and _validation_due(runner) and not self._validated(runner):
            runner.logger.info(f'The validation after iteration {runner.iter} was not finished: now it is.')
            runner.val_loop.run()

    def before_train_epoch(self, runner: Runner) -> None:
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop) or getattr(runner, 'numbered_batches', None) is None:
            return
        done, self._done = self._done, 0
        runner.numbered_batches.start_at(loop.epoch, done)
        if done:
            runner.logger.info(f'Going on at batch {done + 1} of {len(loop.dataloader)} of epoch {loop.epoch + 1}.')
            run_iter = loop.run_iter
            loop.run_iter = lambda index, batch: run_iter(index + done, batch)

    def after_train_epoch(self, runner: Runner) -> None:
        vars(runner.train_loop).pop('run_iter', None)

    def after_val(self, runner: Runner) -> None:
        self._validated_at = runner.iter
        if is_main_process() and isinstance(runner._train_loop, BaseLoop):
            with self._may_fail:
                note_validation(runner)

    def _validated(self, runner: Runner) -> bool:
        """Whether the validation at the checkpoint came to its end: the checkpoint came after it, or it was noted."""
        return self._loaded.get('validated') == runner.iter or finished_validation(runner) is not None

    def _batches_done(self, runner: Runner) -> int:
        """Batches of the current epoch that came before the checkpoint."""
        now = {'batches': len(runner.train_dataloader), 'processes': get_world_size()}
        done = runner.iter - runner.epoch * now['batches']
        if done != 0 and any(self._loaded.get(key, value) != value for key, value in now.items()):
            runner.logger.warning(
                f'The checkpoint is of {self._loaded["processes"]} processes with {self._loaded["batches"]} batches an '
                f'epoch, and these are {now["processes"]} with {now["batches"]}: epoch {runner.epoch + 1} begins anew.'
            )
            return 0
        return done if 0 <= done <= now['batches'] else 0


class _Skipping:
    """An iterator whose first items a resumed loop will drop: as many as there were iterations before.

    mmengine takes them one by one, onedl-mmengine calls ``skip_iter``, whose own form would count the batches that are
    left from 0 again.

    Args:
        iterator: Of batches.
        free: As many items come from nowhere, ahead of its own: where it starts behind them already.
    """

    def __init__(self, iterator: Iterator, free: int) -> None:
        self._items = itertools.chain(itertools.repeat(None, free), iterator)

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        return next(self._items)

    def skip_iter(self, num_iters: int) -> None:
        for _ in range(num_iters):
            next(self._items)


def _validation_due(runner: Runner) -> bool:
    """Whether the loop validates at the place of the checkpoint; a resumed one would not come by again."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    step, last = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    return step >= loop.val_begin and (step % loop.val_interval == 0 or step == last)
