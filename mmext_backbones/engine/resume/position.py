"""Finds the checkpoint to resume from, and the place in the data that it stands for."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from ...registry import HOOKS
from ...utils.errors import UserError
from ...utils.files import unless_full, write_whole
from ...weights.checkpoints import read_meta
from ...weights.fitting import WeightsError
from ...weights.loading import read_file
from .checkpoint_hook import LAST

__all__ = ['PositionHook', 'find_checkpoint']

KEY = 'mmext_position'
NO_ITERATION = 'does not say of which iteration it is'
VALIDATED = 'last_validation'  # the file in the work dir that names the iteration of the last complete validation


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
    last = note.read_text().strip() if note.is_file() else ''
    if '://' in last or (last and Path(last).is_dir()):  # elsewhere, or a folder of DeepSpeed or FSDP
        return last
    if last:
        problem = _problem(last)
        if problem is None:
            return last
        problems.append(problem)
        say(f'The last checkpoint cannot be resumed: {problem}')
    folders = dict.fromkeys([Path(last).parent if last else Path(work_dir), Path(work_dir)])
    found: dict[str, int] = {}
    for path in (str(path) for folder in folders for path in sorted(folder.glob('*.pth'))):
        problem = _problem(path) if path != last else None
        if problem is not None:
            problems += [problem] if not problem.endswith(NO_ITERATION) else []  # weights that somebody put there
        elif path != last:
            checkpoint = read_file(path, 'cpu', mmap=True)
            # not the best ones, which are there to be tested
            if 'optimizer' in checkpoint or 'optim_wrapper' in checkpoint:
                found[path] = checkpoint['meta']['iter']
    if not found and problems:
        lines = '\n  '.join(problems)
        raise UserError(
            f'there are checkpoints in {work_dir}, and the training cannot go on from any of them:\n  {lines}\n'
            'Nothing was changed. To begin anew, leave --resume out, with another --work-dir to keep these files.'
        )
    if not found:
        return None
    newest = max(found, key=found.get)
    say(f'The newest whole checkpoint is {newest}, of iteration {found[newest]}: going on from there.')
    return newest


def _problem(path: str) -> str | None:
    """Why a training cannot go on from this file; None if it can."""
    try:
        meta = read_meta(path) if Path(path).is_file() else None
    except WeightsError as error:
        return str(error)
    except OSError as error:  # torch looks for the end of a file that has none
        return f'{path} cannot be read: {error}'
    if meta is None:
        return f'{path}: there is no such file'
    return None if 'iter' in meta else f'{path} {NO_ITERATION}'


@HOOKS.register_module()
class PositionHook(Hook):
    """Starts a resumed training at the batch that comes next, also within an epoch.

    A validation that was due at the checkpoint and was not finished is made up for first. Its runner numbers the
    batches of the training, see `ResumableRun`; batches of a loader that cannot number them are skipped by loading them
    in an iteration-based loop, and an epoch begins anew in an epoch-based one, as mmengine does it.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        self._loaded: dict[str, int] = {}
        self._done = 0  # batches of the first epoch

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        checkpoint[KEY] = {'batches': len(runner.train_dataloader), 'processes': get_world_size()}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get(KEY) or {}

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        validated = Path(runner.work_dir, VALIDATED)
        validated_at = int(validated.read_text()) if validated.is_file() else None
        if validated_at is not None and validated_at > runner.iter and is_main_process():
            validated.unlink()  # of a training that this one repeats
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
        if self._done == 0 and _validation_due(runner) and validated_at != runner.iter:
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
        if is_main_process():
            _note_validation(Path(runner.work_dir, VALIDATED), runner.iter)

    def _batches_done(self, runner: Runner) -> int:
        """Batches of the current epoch that came before the checkpoint."""
        now = {'batches': len(runner.train_dataloader), 'processes': get_world_size()}
        done = runner.iter - runner.epoch * now['batches']
        if done != 0 and {**now, **self._loaded} != now:
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


@unless_full('the note of the last validation')
def _note_validation(path: Path, iteration: int) -> None:
    write_whole(path, f'{iteration}\n')
