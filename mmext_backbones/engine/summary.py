"""What a run prints about itself: changes of its config, its data and schedule, its results."""

import numbers
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.runner import Runner

from ..config.editing import NOT_SET, Change, shorten
from ..config.options import option_words
from ..utils.attempts import MayFail
from ..utils.cli import command_line
from ..utils.console import say
from ..utils.files import read_path
from ..utils.printable import one_line
from ..utils.words import plural
from .config_edits import step_batch
from .evaluation.per_class import PerClass, per_class_lines
from .options import RunOptions


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
    length = plural(loop.max_iters, 'iteration') if 'max_iters' in loop else plural(loop.max_epochs, 'epoch')
    batch, processes = cfg.train_dataloader.get('batch_size') or '?', get_world_size()
    step = step_batch(cfg, processes)
    whole = f' ({step} a step, over {plural(processes, "process", "processes")})' if step not in (None, batch) else ''
    say(
        f'\nTraining {cfg.model.type} ({millions:.1f} M parameters) for {length} of {plural(batch, "image")} a process'
        f'{whole} on {get_device()}. Log: {os.path.relpath(Path(runner.log_dir) / (runner.timestamp + ".log"))}\n'
    )


def say_summary(
    cfg: Config,
    metrics: dict[str, float],
    started: float,
    config: str,
    asked: RunOptions,
    per_class: PerClass | None = None,
    files: Sequence[tuple[str, Path]] = (),
) -> None:
    work_dir = Path(cfg.work_dir)
    say()
    with MayFail('the table of classes'):
        for line in [*per_class_lines(per_class), ''] if per_class else []:
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
    show_dir = getattr(asked, 'show_dir', None)
    if show_dir is not None and Path(show_dir).is_dir():  # a visualizer that draws no samples leaves none
        say(f'{"pictures":<12} {show_dir}')
    note = work_dir / 'last_checkpoint'
    last = read_path(note)
    if last and note.stat().st_mtime >= started:
        checkpoint = last if '://' in last else os.path.relpath(last)
        say(f'{"checkpoint":<12} {checkpoint}')
        if os.path.isfile(checkpoint):  # DeepSpeed writes folders
            say(f'{"test it":<12} {command_line("tools/test.py", *_test_words(cfg, config, checkpoint, asked))}')
    minutes, seconds = divmod(round(time.time() - started), 60)
    say(f'{"took":<12} {minutes} min {seconds:02d} s')


def _test_words(cfg: Config, config: str, checkpoint: str, asked: RunOptions) -> list[str]:
    """What a test of a checkpoint is told. Where options have changed the config, it is the one in the work dir."""
    written = Path(cfg.work_dir) / Path(cfg.filename).name
    if (asked.cfg_options or asked.bf16) and written.is_file():
        return [os.path.relpath(written), checkpoint]
    shapes = ['--shapes'] if asked.shapes else []
    return [config, checkpoint, *shapes, *option_words(asked.cfg_options)]


def metric_table(metrics: dict[str, Any]) -> list[str]:
    """Lines of a table: COCO's numbers with a row for boxes and one for masks, others one a line.

    What is no number (a confusion matrix, an evaluator's own text) is named by its kind.
    """
    rows: dict[str, dict[str, float]] = {}
    plain = {}
    for name, value in metrics.items():
        kind, _, column = name.rpartition('/')[2].partition('_mAP')
        if '_mAP' in name and isinstance(value, numbers.Real):
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
    plain = {name: value for name, value in plain.items() if name not in ('time', 'data_time')}
    return lines + [line for name, value in plain.items() for line in _metric_lines(name, value)]


def _metric_lines(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [line for key, each in value.items() for line in _metric_lines(f'{name} {key}', each)]
    if getattr(value, 'ndim', None) == 0:  # of numpy or torch
        value = value.item()
    if isinstance(value, numbers.Real):
        return [f'{name:<12} {value:>8.3f}']
    shape = tuple(getattr(value, 'shape', ()))
    return [f'{one_line(name):<12} ' + (f'{" x ".join(map(str, shape))} numbers' if shape else one_line(value)[:80])]
