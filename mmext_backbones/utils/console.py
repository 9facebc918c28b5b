"""What a run prints: only what a person needs; the rest goes to the log file."""

import io
import logging
import os
import warnings
from typing import TextIO

from .printable import printable

__all__ = ['QuietStdout', 'is_first_process', 'say', 'shorten_console', 'silence_libraries']

LONG_RECORD = 12  # lines; longer log records go to the log file and leave one line on the screen


def shorten_console(logger: logging.Logger, *, testing: bool) -> logging.Logger:
    """The logger, whose console shows short records only; its file has all.

    Args:
        logger: mmengine's, with its handlers.
        testing: Leave the libraries' own metrics out, too: the summary of a test has them all.
    """
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(_ShortRecords(testing))
    return logger


class _ShortRecords(logging.Filter):
    """Lets no long record pass, nor what mmengine says about itself at every start; see `printable` for the others.

    Args:
        testing: Leave out the libraries' own metrics too: the summary of a test has them all.
    """

    NOISE = (
        'Failed to search registry with scope',
        'Distributed training is not used, all SyncBatchNorm',
        'Checkpoints will be saved to',
        'Advance dataloader',
        "mmcv's operators: ",
        'paramwise_options --',
        '"FileClient" will be deprecated',
        '"HardDiskBackend" is the alias',
        'bbox_mAP_copypaste',
        'segm_mAP_copypaste',
        'Evaluating bbox',
        'Evaluating segm',
    )
    TABLES = ('per class results', '\n+-', 'Results has been saved to', 'The prefix is not set in metric class')

    def __init__(self, testing: bool = False) -> None:
        super().__init__()
        self.noise = self.NOISE + (self.TABLES if testing else ())

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        record.msg, record.args = printable(text), None
        return text.count('\n') < LONG_RECORD and not text.startswith(self.noise)


class QuietStdout(io.TextIOBase):
    """A screen that leaves out what pycocotools prints around every evaluation; the numbers are in the log."""

    NOISE = (
        'loading annotations into memory',
        'Done (t=',
        'creating index',
        'index created',
        'Loading and preparing results',
        'DONE (t=',
        'Running per image evaluation',
        'Evaluate annotation type',
        'Accumulating evaluation results',
        'Loads checkpoint by ',
        ' Average Precision',
        ' Average Recall',
    )

    def __init__(self, screen: TextIO) -> None:
        self.screen = screen
        self.line = ''

    def isatty(self) -> bool:
        return self.screen.isatty()

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split('\n')
        for line in lines:
            if not line.startswith(self.NOISE):
                self.screen.write(line + '\n')
        return len(text)

    def flush(self) -> None:
        if self.line and not any(noise.startswith(self.line) for noise in self.NOISE):
            self.screen.write(self.line)  # a prompt or a progress bar
            self.line = ''
        self.screen.flush()


def silence_libraries() -> None:
    """Silences what the libraries say about themselves at every start; warnings of this package stay."""
    for module in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch', 'torchvision', 'pkg_resources'):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings('ignore', category=category, module=rf'{module}(\.|$)')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # said where importlib imports it


def is_first_process() -> bool:
    """Whether this is the first process of a run, before its processes know each other."""
    ranks = (os.environ.get(name) for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'))
    return int(next((rank for rank in ranks if rank is not None), 0)) == 0


def say(text: str = '') -> None:
    """Prints a line, on the first process of a distributed run only; see `printable`."""
    if is_first_process():
        print(printable(text), flush=True)
