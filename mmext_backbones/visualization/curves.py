"""Losses, learning rate and metrics of one or several trainings in one picture, a panel for each of them.

    python tools/visualize.py curves work_dirs/swin_t_maskrcnn_1x_shapes
    python tools/visualize.py curves work_dirs/first work_dirs/second --keys loss lr 'coco/*' --out both.png

A run is a work dir of any mmengine training (also one of mmdet's, mmseg's or mmpretrain's own tools), or a file
scalars.json or curves.json. The parts of a training that was resumed are joined.
"""

import argparse
import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path

from ..drawing.charts import Line, Panel, Points, draw_chart, is_main_metric
from ..utils.console import say
from ..utils.errors import UserError, did_you_mean
from .files import check_out, save_figure
from .runs import Run, read_run

__all__ = ['add_arguments', 'draw_runs', 'run', 'smooth']

MANY_LOSSES = 9  # above, only their total is drawn unless --keys says otherwise
STYLES = ('-', '--', ':', '-.')


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
