"""A hook that ends a training at a signal: the iteration is finished, a checkpoint written."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ...registry import HOOKS
from ...utils.console import is_first_process
from ...utils.files import write_whole
from .checkpoint_hook import LAST, WholeCheckpointHook

__all__ = ['EXIT_CODE', 'LoaderProcesses', 'Preempted', 'PreemptionHook', 'any_process', 'release_signals']

EXIT_CODE = os.EX_TEMPFAIL  # 75: try again later
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_received: list[int] = []
_handlers: dict[int, Any] = {}  # those in place before
_watching: list[int] = []  # the process that set ours


class Preempted(SystemExit):
    """A training was asked to stop, and has: a checkpoint is written. Ends the process with `EXIT_CODE`.

    Attributes:
        checkpoint: The file to go on from.
    """

    def __init__(self, checkpoint: str) -> None:
        super().__init__(EXIT_CODE)
        self.checkpoint = checkpoint


def watch_signals() -> None:
    """From here on the first SIGTERM, SIGINT or SIGUSR1 is noted; the second does what it did before.

    In processes that are forked from this one they do what they did before from the first one on: a pool of
    `multiprocessing` ends its processes by SIGTERM and waits for them.
    """
    _received.clear()
    _set_handlers(_note)


def release_signals() -> None:
    """Puts back what was there before, in this process."""
    while _handlers:
        number, handler = _handlers.popitem()
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _set_handlers(handle: Callable[[int, FrameType | None], None]) -> None:
    _watching[:] = [os.getpid()]
    for number in SIGNALS:
        _handlers.setdefault(number, signal.signal(number, handle))


def _before_fork() -> None:
    """Holds signals back: Python drops those that come to a child before its handlers are put back."""
    if _handlers:
        _fork.mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork() -> None:
    if hasattr(_fork, 'mask'):
        signal.pthread_sigmask(signal.SIG_SETMASK, _fork.mask)
        del _fork.mask


def _after_fork_in_child() -> None:
    release_signals()
    _received.clear()
    _after_fork()


_fork = threading.local()
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def _inherited(number: int) -> bool:
    """Whether this process was forked from the one that set the handler; the signal then does what it did before."""
    if _watching == [os.getpid()]:
        return False
    release_signals()
    os.kill(os.getpid(), number)
    return True


def _note(number: int, frame: FrameType | None) -> None:
    if _inherited(number):
        return
    _received.append(number)
    release_signals()
    if is_first_process():
        # a plain write: a signal may come in the middle of a print
        os.write(
            2, f'\n{signal.Signals(number).name}: stopping after this iteration; once more stops at once.\n'.encode()
        )


@HOOKS.register_module()
class PreemptionHook(Hook):
    """Stops a training at SIGTERM, SIGINT or SIGUSR1, which batch systems send some time before they kill it.

    The iteration is finished (with accumulated gradients, the step of the optimizer is), a checkpoint is written, and
    `Preempted` ends the process. A validation is broken off, and made up for by the run that goes on; with several
    processes, which need not have equally many batches of it, it is finished first. Once one process is asked to stop,
    all stop after the same iteration.

    Signals are watched from the time when the data is there to the end of the training; before and after, and from the
    second one on, they do what they did without this hook.
    """

    priority = 'LOWEST'

    def before_run(self, runner: Runner) -> None:
        if threading.current_thread() is not threading.main_thread():
            runner.logger.warning('Signals cannot be watched: Python delivers them to the main thread only.')
            return
        watch_signals()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        updated = getattr(runner.optim_wrapper, 'should_update', lambda: True)
        if any_process(bool(_received)) and updated():
            _stop(runner, runner.iter + 1)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: Any = None
    ) -> None:
        if get_world_size() == 1 and _received:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # the model has the average weights during validation
            _stop(runner, runner.iter)

    def after_val(self, runner: Runner) -> None:
        if any_process(bool(_received)):
            _stop(runner, runner.iter, again=True)


def any_process(flag: bool) -> bool:
    """Whether it is true for any process; called by all of them, which wait for each other."""
    if get_world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    all_reduce(flags, 'max')
    return bool(flags)


def _stop(runner: Runner, iteration: int, *, again: bool = False) -> None:
    """Writes a checkpoint of this many iterations (`again`: also if there is one) and raises `Preempted`."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, WholeCheckpointHook)), None)
    if hook is not None:
        by_epoch = hook.by_epoch and isinstance(runner.train_loop, EpochBasedTrainLoop)
        step = f'{runner.epoch}_iter_{iteration}' if by_epoch else iteration
        checkpoint = hook.save_for_resume(runner, step, runner.epoch, iteration, again=again)
    else:
        checkpoint = str(Path(runner.work_dir, f'iter_{iteration}.pth'))
        meta = {'epoch': runner.epoch, 'iter': iteration}
        runner.save_checkpoint(runner.work_dir, Path(checkpoint).name, meta=meta, by_epoch=False)
        if is_main_process():
            write_whole(Path(runner.work_dir, LAST), checkpoint)
    runner.logger.info(
        f'Stopped after iteration {iteration}, as asked. Checkpoint: {checkpoint}. The same command with --resume goes '
        f'on from there. Exit code {EXIT_CODE}.'
    )
    runner.visualizer.close()
    raise Preempted(checkpoint)


PR_SET_PDEATHSIG = 1  # of Linux: the signal to a process when its parent dies


class LoaderProcesses:
    """Those of the loaders of one training.

    A batch system sends its warning to all processes of a job. The training is to load the data of the iteration that
    it finishes, so its loader processes leave the signal to it; a SIGTERM ends them once `end` was called, which is how
    Python ends what is left of them. Where the training is killed, they are killed with it (on Linux): they would wait
    for ever to hand over a batch that is larger than a pipe.
    """

    def __init__(self) -> None:
        self._ending = multiprocessing.RawValue('b', 0)  # in memory that parent and children share

    def guard(self, loader: DataLoader) -> None:
        """For a loader that has not been used yet."""
        loader.worker_init_fn = _Start(self._ending, loader.worker_init_fn)

    def end(self) -> None:
        """From here on they end at a SIGTERM."""
        self._ending.value = 1


class _Start:
    """What a loader process does first."""

    def __init__(self, ending: Any, then: Callable[[int], None] | None) -> None:
        self.ending = ending
        self.then = then

    def __call__(self, worker_id: int) -> None:
        _set_handlers(self._note)
        if sys.platform == 'linux':
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.then is not None:
            self.then(worker_id)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not _inherited(number) and number == signal.SIGTERM and self.ending.value:
            os._exit(0)
