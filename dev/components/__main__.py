"""Runs every component that the libraries register by mmengine's runner and by ours, and compares.

    python -m dev.components                                  # what has no result yet
    python -m dev.components --only CocoDataset 'mmdet.*Metric' --again
    python -m dev.components --library mmseg --registry DATASETS
    python -m dev.components --walk                           # the list, nothing is run
    python -m dev.components --report                         # the page from the results, nothing is run

Results go to docs/components.jsonl, a line a component, and are counted in docs/components.md.
"""

import argparse
import fnmatch
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mmext_backbones.utils.cli import add_traceback_option, run_cli

from .recipes import CannotDraw, recipe
from .report import PAGE, RESULTS, Rows, keep, page, read, versions
from .running import compare, prepare, run
from .walk import LIBRARIES, REGISTRIES, Component, walk


def chosen(components: Sequence[Component], args: argparse.Namespace) -> list[Component]:
    """Those of the registries and libraries that were asked for, by name or pattern."""
    return [
        each
        for each in components
        if each.registry in args.registry
        and each.library in args.library
        and (not args.only or any(fnmatch.fnmatch(n, p) for p in args.only for n in (each.name, each.short)))
    ]


def examine(component: Component, folder: Path, limit: float, workers: int = 0) -> dict:
    """The result of a component: both sides of its run, in a folder that is left as it is."""
    row = {'key': component.key, 'library': component.library, 'as_installed': component.as_installed}
    try:
        cfg = recipe(component, folder / 'data')
    except CannotDraw as error:
        return {**row, 'outcome': 'not drawn', 'reason': str(error)}
    for split in ('train', 'val', 'test') if workers else ():
        cfg[f'{split}_dataloader']['num_workers'] = workers
    place = folder / component.registry / component.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    config = place / 'config.py'
    config.write_text(''.join(f'{key} = {value!r}\n' for key, value in cfg.items()))
    theirs, own = (run(side, config, place / side, limit) for side in ('stock', 'ours'))
    outcome, reason = compare(theirs, own)
    row |= {'outcome': outcome, 'reason': reason.replace(str(folder), '')}
    if outcome == 'both fail':
        row['told'] = ' '.join(own['error'].replace(str(folder), '').split())[:300] if own['exit'] == 2 else None
    return {**row, 'seconds': [round(theirs['seconds'], 2), round(own['seconds'], 2)]}


def examine_all(components: Sequence[Component], rows: Rows, args: argparse.Namespace) -> None:
    """Adds a row for each component, and writes all rows after each."""
    prepare()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        for number, component in enumerate(components, start=1):
            if args.minutes and time.monotonic() - started > 60 * args.minutes:
                return
            row = examine(component, args.keep or Path(temporary), args.limit, args.workers)
            rows[component.key] = {**row, 'date': time.strftime('%Y-%m-%d')}
            keep(args.results, rows)
            told = f'{row["outcome"]} {row.get("seconds", "")} {row["reason"]}'
            print(f'[{number}/{len(components)}] {component.key}: {told}', flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', metavar='NAME', help='names or patterns, with or without the scope')
    parser.add_argument('--library', nargs='+', choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument('--registry', nargs='+', choices=REGISTRIES, default=REGISTRIES)
    parser.add_argument('--again', action='store_true', help='those that have a result as well')
    parser.add_argument('--limit', type=float, default=60, metavar='SECONDS', help='a side of a run may take (60)')
    parser.add_argument('--workers', type=int, default=0, help='of each loader (0)')
    parser.add_argument('--minutes', type=float, help='begin no further run after so long')
    parser.add_argument('--results', type=Path, default=RESULTS, metavar='FILE')
    parser.add_argument('--keep', type=Path, metavar='FOLDER', help='leave data, configs and logs there')
    parser.add_argument('--walk', action='store_true', help='list them')
    parser.add_argument('--report', action='store_true', help='write the page only')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    components = walk()
    asked = chosen(components, args)
    if args.walk:
        print(*(each.key for each in asked), f'{len(asked)} components', sep='\n')
        return 0
    rows = read(args.results)
    if not args.report:
        examine_all([each for each in asked if args.again or each.key not in rows], rows, args)
    if args.results == RESULTS:
        PAGE.write_text(page(rows, components, versions()))
    return int(any(rows[each.key]['outcome'] == 'differs' for each in asked if each.key in rows))


if __name__ == '__main__':
    sys.exit(run_cli(main))
