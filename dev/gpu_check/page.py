"""The part of docs/performance.md that a run on a GPU fills."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmext_backbones.utils.errors import UserError

PAGE = Path(__file__).parents[2] / 'docs/performance.md'
BEGIN, END = '<!-- gpu: begin (python -m dev.gpu_check --page JSON) -->', '<!-- gpu: end -->'
NEVER = (
    'The kernels in Triton were **never run on a GPU**: their interpreter and their compiler have had their say, and\n'
    'no time of a GPU is on this page. `python -m dev.gpu_check --json gpu.json` measures it within eight minutes,\n'
    'with torch, Triton and this checkout alone; `--page gpu.json` writes the table here.'
)


def write_page(path: Path) -> None:
    """Puts the results of a run into the page.

    Raises:
        UserError: for a file that is none, or of a dry run.
    """
    from mmext_backbones.analysis.estimate_table import replace_table  # needs more than torch

    try:
        results = json.loads(path.read_text())
        dry = results['dry']
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f'{path} has no results of dev.gpu_check: {type(error).__name__}: {error}') from error
    if dry:
        raise UserError(f'{path} is of a dry run on a CPU: the page is for times of a GPU')
    PAGE.write_text(replace_table(PAGE.read_text(), text(results), BEGIN, END))


def text(results: Mapping[str, Any] | None) -> str:
    """The part, in Markdown; None: no GPU has run it."""
    if results is None:
        return NEVER
    machine, checks = results['machine'], results.get('checks', [])
    packages = machine.get('packages', {})
    versions = ', '.join(
        [f'torch {machine["torch"]}', *(f'{n} {packages[n]}' for n in ('triton', 'timm') if n in packages)]
    )
    checks = [row for row in checks if row['right'] is not None]  # what the GPU is not refused
    wrong = [row for row in checks if not row['right']]
    lines = [
        f'Run on {machine["accelerator"]} ({machine["capability"]}), {versions}, in {results["seconds"]:.0f} s. '
        f'{len(checks) - len(wrong)} of {len(checks)} comparisons of operators with their formula are right.',
        *(f'- wrong: {row["operator"]}, {row["form"]}, {row["dtype"]}: {_why(row)}' for row in wrong),
        '',
        '| operator | type | | milliseconds |',
        '|---|---|---|---|',
        *_rows(results.get('operators', []), lambda row: (row['name'], row['dtype'], row['mode'])),
        '',
        '| network | images | type | | milliseconds (MiB at the peak) |',
        '|---|---|---|---|---|',
        *_rows([*results.get('networks', []), *results.get('compiled networks', [])], _network),
    ]
    if results['left_out']:
        lines += ['', f'Left out, for want of time: {"; ".join(results["left_out"])}.']
    if results['errors']:
        lines += ['', *(f'- failed: {each["step"]}: {each["error"]}' for each in results['errors'])]
    return '\n'.join(lines)


def _network(row: Mapping[str, Any]) -> tuple[str, ...]:
    return row['network'], f'{row["batch"]} x {" x ".join(map(str, row["size"]))}', row['dtype'], row['mode']


def _rows(rows, names) -> Iterator[str]:
    for row in rows:
        peaks = row.get('peak_mib', {})
        cells = [_cell(side, times, peaks.get(side)) for side, times in row['ms'].items()]
        cells += [f'{side}: does not run' for side in row['errors']]
        yield f'| {" | ".join(names(row))} | {", ".join(cells)} |'


def _cell(side: str, times: list[float], peak: float | None) -> str:
    return f'{side} {times[0]:.3g}' + ('' if peak is None else f' ({peak:.0f})')


def _why(row: Mapping[str, Any]) -> str:
    return (
        row['error']
        if 'error' in row
        else f'{max(row["errors"]):.1e} of the largest element, {row["allowed"]:.0e} allowed'
    )
