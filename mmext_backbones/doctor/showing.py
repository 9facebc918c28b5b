"""Findings on the screen: a table, with rich where it is there; then one line for each problem."""

from collections.abc import Sequence

from .examining import Finding

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
