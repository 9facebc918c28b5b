"""Reading what a training logged: mmengine's scalars.json, one for each start, and the curves.json of our hook."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..drawing.charts import Points
from ..utils.errors import UserError

__all__ = ['Run', 'read_run']

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
