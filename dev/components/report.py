"""The results of the survey: kept as lines of JSON, and shown as a page."""

import importlib
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmext_backbones.utils.files import write_whole

from .walk import Component

__all__ = ['PAGE', 'RESULTS', 'Rows', 'keep', 'page', 'read', 'versions']

DOCS = Path(__file__).parents[2] / 'docs'
RESULTS, PAGE = DOCS / 'components.jsonl', DOCS / 'components.md'
OUTCOMES = ('equal', 'both fail', 'differs', 'not drawn')
Rows = dict[str, dict[str, Any]]
INTRODUCTION = """# The libraries' components under our runner

Written by `python -m dev.components`; do not edit.

Whatever runs with mmengine's runner is to run with ours, and to come to the same numbers. So every data set and
wrapper, sampler, metric, evaluator, hook, loop and runner that mmengine, mmcv, mmdet, mmsegmentation and mmpretrain
register ({walked} of them) is put into a small run: four drawn pictures in its own annotation format, a network of
one layer whose loss depends on every label, two epochs of training, a validation, and a test of the last checkpoint.
The run is done by the stock runner (`Runner.from_cfg(cfg).train()`, then `.test()`) and by what is behind
`tools/train.py` and `tools/test.py`, in a process each, with the same seed, on the CPU, without loader workers. What
a pipeline draws by chance is seeded by the sample in both: our runner draws it from the number of the batch, see
[reliability](reliability.md).

- **equal**: both end well, with the same losses, batches, metrics and final weights bit by bit, the same checkpoints by
  name, and the same files from metrics and hooks;
- **both fail**: neither ends well: a package that is not installed here, or a run that mmengine does not
  survive either;
- **differs**: anything else;
- **not drawn**: no small run was found.

Not covered: several processes, GPUs, loader workers, resumed runs.
"""


def read(path: Path) -> Rows:
    """The results so far, by key."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row['key']: row for row in map(json.loads, lines)}


def keep(path: Path, rows: Rows) -> None:
    write_whole(path, ''.join(json.dumps(rows[key]) + '\n' for key in sorted(rows)))


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    names = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
    found = {name: importlib.import_module(name).__version__.partition('+')[0] for name in names}
    return {'Python': platform.python_version(), **found}


def page(rows: Mapping[str, dict], components: Sequence[Component], versions: Mapping[str, str]) -> str:
    """The page of the results.

    Args:
        rows: By key, of `read`.
        components: All there are.
        versions: Of the libraries.

    Returns:
        Markdown.
    """
    known = [rows[each.key] for each in components if each.key in rows]
    sections = [INTRODUCTION.format(walked=len(components))]
    if len(known) < len(components):
        sections.append(f'**Not all of them: {len(known)} of {len(components)} have a result.**\n')
    registries = list(dict.fromkeys(each.registry for each in components))
    counts = [(name, *_counts([row for row in known if row['key'].startswith(f'{name}/')])) for name in registries]
    sections += ['## Totals\n', _table(('', *OUTCOMES, 'all'), [*counts, ('**all**', *_counts(known))])]
    sections.append(_told(known, versions))
    for outcome, title in (
        ('differs', 'What differs'),
        ('both fail', 'What fails in both'),
        ('not drawn', 'Not drawn'),
    ):
        lines = [(f'`{row["key"]}`', _cell(row['reason'])) for row in known if row['outcome'] == outcome]
        sections += [f'## {title}\n', _table(('component', 'reason'), lines) if lines else 'Nothing.\n']
    sections += ['## All\n', _table(('component', 'outcome', 'mmengine, s', 'ours, s', 'ratio'), map(_line, known))]
    return '\n'.join(sections)


def _counts(rows: Sequence[dict]) -> list[int]:
    return [*(sum(row['outcome'] == outcome for row in rows) for outcome in OUTCOMES), len(rows)]


def _told(rows: Sequence[dict], versions: Mapping[str, str]) -> str:
    """When, with what, and how long."""
    dates = sorted({row['date'] for row in rows})
    span = ' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else 'not yet'
    ratios = [row['seconds'][1] / row['seconds'][0] for row in rows if row['outcome'] == 'equal']
    middle = f' The median ratio of times is {statistics.median(ratios):.2f}.' if ratios else ''
    later = sum(not row['as_installed'] for row in rows)
    told = ', '.join(f'{name} {version}' for name, version in versions.items())
    return (
        f'Measured {span} with {told}.{middle} A run of ours also starts TensorBoard, draws curves and predictions and '
        'says what it does: in a run this short, most of its time.\n\n'
        f'{later} of these are multimodal data sets that mmpretrain registers only with further packages; here their '
        'modules are imported by name. CIFAR10 and CIFAR100 know their files by MD5 sums, which are not asked for '
        'here.\n'
    )


def _line(row: dict) -> tuple:
    if 'seconds' not in row:
        return f'`{row["key"]}`', row['outcome'], '', '', ''
    stock, ours = row['seconds']
    return f'`{row["key"]}`', row['outcome'], stock, ours, f'{ours / max(stock, 0.01):.2f}'


def _cell(text: str) -> str:
    return ' '.join(text.replace('|', '\\|').replace('<', '&lt;').split())


def _table(head: Sequence[str], lines: Any) -> str:
    rows = [head, ['---'] * len(head), *lines]
    return ''.join(f'| {" | ".join(map(str, row))} |\n' for row in rows)
