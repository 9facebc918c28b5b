"""Looks at the installation: versions and what fits together, what imports and what runs, data, caches, space.

python -m mmext_backbones.doctor
python -m mmext_backbones.doctor configs/elsa_swin_t_maskrcnn_1x.py --json doctor.json

One line for each problem, with its remedy. Exit code 0 if nothing that matters is broken, 1 otherwise.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..utils.printable import printable
from .findings import Finding, examine
from .probing import names_of, run_probes


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m mmext_backbones.doctor',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', nargs='?', help='look for the data of this config as well')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the findings there, too')
    parser.add_argument('--quick', action='store_true', help='imports and versions only: run nothing, compile nothing')
    args = parser.parse_args(argv)
    facts = run_probes(names_of(args.config, args.quick), args.config)
    findings = [each._replace(text=printable(each.text)) for each in examine(facts, args.config)]
    broken = any(finding.level == 'problem' for finding in findings)
    show(findings)
    if args.json is not None:
        result = {'ok': not broken, 'findings': [finding._asdict() for finding in findings], 'facts': facts}
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result, indent=1))
        except OSError as error:
            print(f'{args.json} cannot be written: {error}', file=sys.stderr)
            return 1
    return int(broken)


MARKS = {'ok': 'ok', 'note': 'note', 'problem': 'PROBLEM'}
COLOURS = {'ok': 'green', 'note': 'yellow', 'problem': 'bold red'}


def show(findings: Sequence[Finding]) -> None:
    try:
        _rich(findings)
    except Exception:  # not there, or as broken as anything else may be
        _plain(findings)
    problems = [finding for finding in findings if finding.level == 'problem']
    print()
    for finding in problems:
        print(f'{finding.topic}: {finding.text}' + (f' -> {finding.remedy}' if finding.remedy else ''))
    count = f'{len(problems)} problem{"s" if len(problems) != 1 else ""}'
    print(f'{count} to be mended.' if problems else 'Nothing that matters is broken.')


def _rich(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for column in ('topic', 'level', 'text'):
        table.add_column(column, overflow='fold', no_wrap=column != 'text')
    for finding in findings:
        text = Text(finding.text)
        if finding.remedy:
            text.append(f'\n{finding.remedy}', style='dim')
        table.add_row(finding.topic, Text(MARKS[finding.level], style=COLOURS[finding.level]), text)
    Console().print(table)


def _plain(findings: Sequence[Finding]) -> None:
    width = max((len(finding.topic) for finding in findings), default=0)
    for finding in findings:
        print(f'{finding.topic:{width}}  {MARKS[finding.level]:7}  {finding.text}')
        if finding.remedy:
            print(f'{"":{width}}           {finding.remedy}')


if __name__ == '__main__':
    sys.exit(main())
