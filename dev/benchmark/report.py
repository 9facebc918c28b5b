"""Rows as a table for people, and everything as JSON for programs."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmext_backbones.utils.files import write_whole
from mmext_backbones.zoo import SIZES

from .session import LeftOut, Row
from .timing import Spread

__all__ = ['growth_lines', 'heading', 'legend', 'line', 'markdown', 'write_json']

PEERS = {'unfold': 'its unfolded form', 'swin': 'our Swin', 'volo': 'our VOLO'}  # in prose
WIDTHS = (13, 17, 14, 6, 26, 26, 27)


def heading(row: Row) -> list[str]:
    """What the rows below have in common, and the names of the columns."""
    title = f'{row.title}, {row.arch}, batch {row.batch}, {row.size[0]} x {row.size[1]}'
    columns = ('peer', 'mode', 'form', 'type', 'ours (ms)', 'peer (ms)', 'peer / ours')
    return ['', f'{title}', ''.join(f'{name:{width}}' for name, width in zip(columns, WIDTHS, strict=True)) + 'more']


def line(row: Row) -> str:
    """One row: medians with quartiles, the ratio, and what else was measured."""
    cells = [row.peer, row.mode, row.form, row.dtype]
    cells += [_span(row.time(side), 1e3) for side in ('ours', 'peer')]
    cells.append(_span(row.ratio) + (' tie' if row.ratio.tie else ''))
    more = []
    if row.part:
        more.append(row.part)
    if row.memory:
        ours, peer = row.memory['ours'], row.memory['peer']
        ratio = f' ({peer / ours:.2f})' if ours > 0 else ''
        more.append(f'peak {ours:.0f} and {peer:.0f} MiB{ratio}')
    if row.floor is not None:
        shares = (row.floor / row.time(side).median for side in ('ours', 'peer'))
        more.append('of the roofline {:.0%} and {:.0%}'.format(*shares))
    agreement = row.agreement
    if agreement.outputs is not None:
        more.append(f'outputs within {agreement.outputs:.0e}')
    if agreement.gradients is not None:
        more.append(f'gradients within {agreement.gradients:.0e}')
    if agreement.ours is not None:
        more.append(f'off float32 by {agreement.ours:.0e} and {agreement.peer:.0e}')
    return ''.join(f'{cell:{width}}' for cell, width in zip(cells, WIDTHS, strict=True)) + '; '.join(more + row.notes)


def markdown(row: Row) -> str:
    """The row as the tables of docs/performance.md have it."""
    name = f'{re.split(" as | beside ", row.title)[0]}-{SIZES.get(row.arch, row.arch).upper()}'
    peer = PEERS.get(row.peer, row.peer)
    low, high = row.ratio.low, row.ratio.high
    ratio = f'{row.ratio.median:.2f} ({low:.2f} to {high:.2f}), a tie'
    if not row.ratio.tie:
        ratio = f'**{row.ratio.median:.2f}** ({low:.2f} to {high:.2f})'
    cells = [name, f'{row.batch} x {row.size[0]} x {row.size[1]}', row.mode, peer]
    cells += [f'{row.time(side).median:.3f} s' for side in ('ours', 'peer')] + [ratio]
    if row.memory:
        ours, theirs = row.memory['ours'], row.memory['peer']
        cells += [f'{ours:.0f}, {theirs:.0f} MiB', f'{theirs / max(ours, 1):.2f}']
    return f'| {" | ".join(cells)} |'


def legend(left_out: Sequence[LeftOut]) -> list[str]:
    """How to read the table, and what is not in it."""
    lines = ['', 'Median (first to third quartile) of the rounds; above 1 ours is faster; tie: the quartiles span 1.']
    lines += ['Peak memory of a pass beyond weights and inputs, each side in a fresh process.']
    if left_out:
        lines += ['', 'Left out:', *(f'  {one.what}: {one.reason}' for one in left_out)]
    return lines


def growth_lines(growths: Sequence[Mapping[str, Any]]) -> list[str]:
    """Times by size and by batch, and the exponents."""
    lines = []
    for one in growths:
        lines += ['', f'{one["title"]}, {one["arch"]}, {one["mode"]}, {one["dtype"]}']
        for key, unit, what in (('by_edge', 'pixels of an edge', 'pixels'), ('by_batch', 'images', 'images')):
            found = one[key]
            if found is None:
                continue
            lines += [f'  {amount:>6} {unit}: {seconds * 1e3:.1f} ms' for amount, seconds in found['median'].items()]
            lines.append(f'  time ~ {what}^a, a = {_span(Spread(**found["exponent"]))}')
    return lines


def write_json(path: str | os.PathLike, found: Mapping[str, Any]) -> None:
    """Replaces the file in one move: whoever reads it during a run sees whole rows."""
    write_whole(Path(path), json.dumps(found, indent=1))


def _span(value: Spread, factor: float = 1.0) -> str:
    median, low, high = (number * factor for number in value)
    digits = 1 if median >= 100 else 2
    return f'{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})'
