"""What a run says: on the screen only what a person needs, the rest in the log file."""

import io
import logging
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.runner import Runner

from ..datasets.shapes_config import NOT_SET, Change, shorten
from .results import PerClass, per_class_lines
from .scaling import step_batch

__all__ = ['Chatter', 'metric_table', 'quiet', 'say', 'say_changes', 'say_plan', 'say_summary', 'shorten_console']

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
    """Lets no long record pass, nor what mmengine says about itself at every start.

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
        return text.count('\n') < LONG_RECORD and not text.startswith(self.noise)


class Chatter(io.TextIOBase):
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


def quiet() -> None:
    """Silences what the libraries say about themselves at every start; warnings of this package stay."""
    for module in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torch', 'torchvision', 'pkg_resources'):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.filterwarnings('ignore', category=category, module=rf'{module}(\.|$)')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated')  # said where importlib imports it


def say(text: str = '') -> None:
    """Prints a line, on the first process of a distributed run only."""
    if int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0))) == 0:
        print(text, flush=True)


def say_changes(changes: Sequence[Change], shapes: bool, skip: tuple[str, ...] = ()) -> None:
    """What was changed, a line each where it fits; what is equal for validation and test is said once."""
    told: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        if not change.path.startswith(skip):
            before = shorten(change.before)
            after = shorten(change.after) if change.after is not NOT_SET else '(removed)'
            told.setdefault((before, after, change.path.removeprefix('val_').removeprefix('test_')), []).append(
                change.path
            )
    if not told:
        return
    say(f'\nChanged in the config to run on {"the Shapes data" if shapes else "this machine"}:')
    for (before, after, _), paths in told.items():
        line = f'  {", ".join(paths)}: {before} -> {after}'
        say(line if len(line) <= 118 else f'  {", ".join(paths)}:\n      {before}\n   -> {after}')


def say_plan(runner: Runner, cfg: Config) -> None:
    millions = sum(parameter.numel() for parameter in runner.model.parameters()) / 1e6
    loop = cfg.train_cfg
    length = f'{loop.max_iters} iterations' if 'max_iters' in loop else f'{loop.max_epochs} epochs'
    batch, processes = cfg.train_dataloader.get('batch_size') or '?', get_world_size()
    step = step_batch(cfg, processes)
    whole = f' ({step} a step, over {processes} process{"es" * (processes > 1)})' if step not in (None, batch) else ''
    say(
        f'\nTraining {cfg.model.type} ({millions:.1f} M parameters) for {length} of {batch} images a process{whole} '
        f'on {get_device()}. Log: {os.path.relpath(Path(runner.log_dir) / (runner.timestamp + ".log"))}\n'
    )


def say_summary(
    cfg: Config,
    metrics: dict[str, float],
    started: float,
    config: str,
    shapes: bool,
    show_dir: str | None = None,
    per_class: PerClass | None = None,
    files: Sequence[tuple[str, Path]] = (),
) -> None:
    work_dir = Path(cfg.work_dir)
    say()
    if per_class:
        for line in [*per_class_lines(per_class), '']:
            say(line)
    for line in metric_table(metrics):
        say(line)
    say()
    for name in ('predictions', 'curves'):
        path = work_dir / f'{name}.png'
        if path.is_file() and path.stat().st_mtime >= started:
            say(f'{name:<12} {path}')
    for name, path in files:
        say(f'{name:<12} {path}')
    if show_dir is not None:
        say(f'{"pictures":<12} {show_dir}')
    last = work_dir / 'last_checkpoint'
    if last.is_file() and last.stat().st_mtime >= started:
        checkpoint = os.path.relpath(last.read_text().strip())
        say(f'{"checkpoint":<12} {checkpoint}')
        if os.path.isfile(checkpoint):  # DeepSpeed writes folders
            say(f'{"test it":<12} python tools/test.py {config} {checkpoint}{" --shapes" if shapes else ""}')
    minutes, seconds = divmod(round(time.time() - started), 60)
    say(f'{"took":<12} {minutes} min {seconds:02d} s')


def metric_table(metrics: dict[str, float]) -> list[str]:
    """Lines of a table: COCO's numbers with a row for boxes and one for masks, others one a line."""
    rows: dict[str, dict[str, float]] = {}
    plain = {}
    for name, value in metrics.items():
        kind, _, column = name.rpartition('/')[2].partition('_mAP')
        if '_mAP' in name:
            rows.setdefault(kind, {})['mAP' + column] = value
        else:
            plain[name.rpartition('/')[2]] = value
    lines = []
    if rows:
        columns = list(next(iter(rows.values())))
        lines.append(' ' * 12 + ''.join(f'{column:>9}' for column in columns))
        names = {'bbox': 'box', 'segm': 'mask'}
        for kind, values in rows.items():
            cells = (values.get(column, -1) for column in columns)
            lines.append(
                f'{names.get(kind, kind):<12}' + ''.join(f'{v:>9.3f}' if v >= 0 else f'{"-":>9}' for v in cells)
            )
    lines += [f'{name:<12}{value:>9.3f}' for name, value in plain.items() if name not in ('time', 'data_time')]
    return lines
