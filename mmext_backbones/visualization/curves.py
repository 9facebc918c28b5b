"""Losses, learning rate and metrics of one or several trainings in one picture, a panel for each of them.

    python tools/visualize.py curves work_dirs/swin_t_maskrcnn_1x_shapes
    python tools/visualize.py curves work_dirs/first work_dirs/second --keys loss lr 'coco/*' --out both.png

A run is a work dir of any mmengine training (also one of mmdet's, mmseg's or mmpretrain's own tools), or a file
scalars.json or curves.json. The parts of a training that was resumed are joined.
"""

import argparse
import fnmatch
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..drawing.charts import Line, Panel, Points, draw_chart, is_main_metric
from ..drawing.files import check_out, save_figure
from ..utils.console import say
from ..utils.errors import UserError, did_you_mean

__all__ = ['Run', 'add_arguments', 'draw_runs', 'read_run', 'run', 'smooth']

MANY_LOSSES = 9  # above, only their total is drawn unless --keys says otherwise
STYLES = ('-', '--', ':', '-.')
PLACE = ('step', 'iter', 'epoch')
WITHOUT_MEANING = ('time', 'data_time')  # of a validation: a training logs the same keys


@dataclass
class Run:
    """What one training logged.

    Attributes:
        path: Of the folder or the file that it was read from.
        curves: Points by key, in order.
        metrics: The keys that a validation logged.
        notes: What a person should know about how it was read.
    """

    path: Path
    curves: dict[str, Points] = field(default_factory=dict)
    metrics: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, key: str, step: int, value: float) -> None:
        self.curves.setdefault(key, []).append((step, value))

    def cut(self, step: int) -> None:
        """Forgets what came after an iteration."""
        self.curves = {key: [point for point in points if point[0] <= step] for key, points in self.curves.items()}


def read_run(path: Path) -> Run:
    """Reads a run.

    Args:
        path: A work dir, one of the folders with a date in it, or a file scalars.json or curves.json.

    Raises:
        UserError: if there is no training.
    """
    run = Run(path)
    if path.is_file():
        parts = [path]
    elif path.is_dir():
        parts = sorted([*path.glob('*/vis_data/scalars.json'), *path.glob('vis_data/scalars.json')])
        parts = parts or [file for file in [path / 'scalars.json'] if file.is_file()]
    else:
        raise UserError(f'run {str(path)!r}: there is no such folder or file.')
    saved = path / 'curves.json'
    if saved.is_file() and not parts:
        parts = [saved]
    for part in parts:
        _add_part(run, part)
    if saved.is_file() and parts != [saved]:
        _add_before(run, saved)
    run.curves = {key: points for key, points in run.curves.items() if points}
    if not run.curves:
        raise UserError(
            f'run {str(path)!r}: no training has logged anything there. Expected a work dir with '
            '<date>/vis_data/scalars.json or with curves.json in it, or one of these files.'
        )
    return run


def _add_part(run: Run, path: Path) -> None:
    """What one start of a training logged, after what those before it did."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    if _is_curves(text):
        _add_curves(run, json.loads(text))
        return
    entries = list(_entries(run, path, text))
    first = next((entry['iter'] for entry in entries if 'iter' in entry), None)
    if first is None:
        return  # a test, or a start that was cut short
    part = path.parents[1].name if path.parent.name == 'vis_data' else path.name
    if run.curves:
        steps = [entry['iter'] for entry in entries if 'iter' in entry]
        interval = steps[1] - steps[0] if len(steps) > 1 else first
        if first <= interval:
            run.notes.append(f'starts again from the beginning in {part}; what was logged before is left out')
            run.curves, run.metrics = {}, set()
        else:
            run.notes.append(f'goes on in {part} from iteration {first}')
            run.cut(first - 1)
    step = 0
    for entry in entries:
        trained = 'iter' in entry
        step = entry['iter'] if trained else step
        for key, value in entry.items():
            if key in PLACE or not isinstance(value, (int, float)) or (not trained and key in WITHOUT_MEANING):
                continue
            key = f'val/{key}' if not trained and key in run.curves and key not in run.metrics else key
            if not trained:
                run.metrics.add(key)
            run.add(key, step, float(value))


def _entries(run: Run, path: Path, text: str) -> Iterator[dict]:
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if isinstance(entry, dict):
            yield entry
        elif line.strip():
            if number < len(lines):
                raise UserError(f'{path}, line {number}: expected an object of JSON, as mmengine logs it.')
            run.notes.append(f'the last line of {path} was cut short and is left out')


def _is_curves(text: str) -> bool:
    try:
        content = json.loads(text)
    except ValueError:  # several objects, a line each
        return False
    return isinstance(content, dict) and {'losses', 'metrics'} <= content.keys()


def _add_curves(run: Run, content: dict) -> None:
    for kind in ('losses', 'metrics'):
        for key, points in content[kind].items():
            run.curves[key] = [(int(step), float(value)) for step, value in points]
    run.metrics |= set(content['metrics'])


def _add_before(run: Run, saved: Path) -> None:
    """What came before a resume from another work dir: the first part does not have it, and curves.json does."""
    first = min((points[0][0] for points in run.curves.values() if points), default=math.inf)
    try:
        earlier = Run(saved)
        _add_curves(earlier, json.loads(saved.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        run.notes.append(f'{saved} cannot be read and is left out')
        return
    known = {point for points in earlier.curves.values() for point in points if point[0] < first}
    if not known:
        return
    earlier.cut(first - 1)
    for key, points in earlier.curves.items():
        run.curves[key] = points + run.curves.get(key, [])
    run.metrics |= earlier.metrics
    run.notes.append(f'before iteration {first}: from {saved.name}')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('runs', nargs='+', metavar='RUN', help='a work dir, or a scalars.json or curves.json')
    parser.add_argument(
        '--keys', nargs='+', metavar='KEY', help='what is drawn; * stands for anything (default: losses, lr, metrics)'
    )
    parser.add_argument(
        '--smooth',
        type=float,
        default=0.6,
        metavar='WEIGHT',
        help='of what came before in a smoothed training value, as in TensorBoard; 0: as logged (default: %(default)s)',
    )
    parser.add_argument('--out', default='curves.png', metavar='FILE', help='the picture (default: %(default)s)')


def run(args: argparse.Namespace) -> None:
    if not 0 <= args.smooth < 1:
        raise UserError(f'--smooth {args.smooth}: expected 0 or more, and less than 1')
    out = check_out(args.out)
    runs = _named([read_run(Path(name)) for name in args.runs])
    keys = _choose(runs, args.keys)
    for name, of_run in runs.items():
        for note in of_run.notes:
            say(f'{name}: {note}')
        missing = [key for key in keys if key not in of_run.curves]
        if missing:
            say(f'{name}: not logged: {", ".join(missing)}')
    save_figure(out, draw_runs(runs, keys, args.smooth))


def draw_runs(runs: dict[str, Run], keys: Sequence[str], weight: float) -> object:
    """A chart with a panel for each key and a line for each run that has it.

    Args:
        runs: By their names in the legend.
        keys: Of their curves.
        weight: See `smooth`; for what is logged while training, but not for learning rates.
    """
    styles = {
        name: {'color': f'C{index % 10}', 'linestyle': STYLES[index // 10 % len(STYLES)]}
        for index, name in enumerate(runs)
    }
    panels = []
    for key in keys:
        lines = []
        smoothed = weight > 0 and not key.endswith('lr') and not any(key in of_run.metrics for of_run in runs.values())
        for name, of_run in runs.items():
            points = of_run.curves.get(key)
            if not points:
                continue
            if smoothed:
                lines.append(Line(name, smooth(points, weight), raw=points, style=styles[name]))
            else:
                marker = {'marker': 'o', 'markersize': 4} if key in of_run.metrics else {}
                lines.append(Line(name, points, style=styles[name] | marker))
        panels.append(Panel(key, '', lines))
    title = next(iter(runs)) if len(runs) == 1 else f'{len(runs)} runs'
    if weight > 0:
        title += f' (training values smoothed with weight {weight:g}, pale: as logged)'
    columns = 4 if len(panels) > 6 else 3 if len(panels) > 4 else 2
    return draw_chart(panels, title, columns, size=(4.2, 3.0), one_legend=True)


def smooth(points: Points, weight: float) -> Points:
    """The exponential moving mean of a curve, without the pull of its start towards zero.

    Args:
        points: In order. A value that is not finite is kept and starts the mean anew.
        weight: Of what came before, from 0 to less than 1.
    """
    result, total, weights = [], 0.0, 0.0
    for step, value in points:
        total, weights = weight * total + (1 - weight) * value, weight * weights + (1 - weight)
        result.append((step, total / weights))
        if total - total != 0:  # NaN or infinite
            total, weights = 0.0, 0.0
    return result


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """By the name of their folders, with as much of the path as tells them apart."""
    paths = [of_run.path.resolve() for of_run in runs]
    if len(set(paths)) < len(paths):
        raise UserError('the same run is named twice.')
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [os.path.join(*path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, runs, strict=True))


def _choose(runs: dict[str, Run], patterns: Sequence[str] | None) -> list[str]:
    known = list(dict.fromkeys(key for of_run in runs.values() for key in of_run.curves))
    if patterns is None:
        losses = sorted((key for key in known if 'loss' in key), key=lambda key: key != 'loss')
        if len(losses) > MANY_LOSSES and 'loss' in losses:
            say(f"{len(losses) - 1} parts of the loss are left out. To draw them: --keys '*loss*'")
            losses = ['loss']
        metrics = {key for of_run in runs.values() for key in of_run.metrics}
        return losses + [key for key in known if key == 'lr' or (key in metrics and is_main_metric(key))]
    chosen = []
    for pattern in patterns:
        found = [key for key in known if fnmatch.fnmatchcase(key, pattern)]
        if not found:
            raise UserError(
                f'--keys {pattern}: no run has logged it.{did_you_mean(pattern, known)}\nThere are: {", ".join(known)}'
            )
        chosen += [key for key in found if key not in chosen]
    return chosen
