"""The processes that load data, and signals: they end with the training, and not before it."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from .resume.signals import SIGNALS

__all__ = ['LoaderProcesses']

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
        for number in SIGNALS:
            signal.signal(number, self._note)
        if sys.platform == 'linux':
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.then is not None:
            self.then(worker_id)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and self.ending.value:
            os._exit(0)
