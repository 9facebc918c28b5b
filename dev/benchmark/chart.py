"""Results as pictures."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .session import Row

__all__ = ['draw_growth', 'draw_ratios']

COLOURS = {'forward': '#2f6f9f', 'forward+backward': '#c8782a'}
MEMORY = '#7a9a55'


def draw_ratios(rows: Sequence[Row], path: str | os.PathLike) -> None:
    """A bar a row: peer / ours in time, with the quartiles as whiskers; beside it the same in memory where known."""
    figure_of = _pyplot()
    panels = 2 if any(row.memory for row in rows) else 1
    height = max(2.5, 1.3 + 0.32 * len(rows))
    figure, axes = figure_of(1, panels, figsize=(7 + 3 * panels, height), sharey=True, squeeze=False)
    axes = axes[0]
    places = range(len(rows))
    ratios = [row.ratio for row in rows]
    whiskers = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
    colours = [COLOURS[row.mode] for row in rows]
    axes[0].barh(places, [r.median for r in ratios], xerr=whiskers, color=colours, height=0.7, capsize=2)
    for place, ratio in zip(places, ratios, strict=True):
        text = f' {ratio.median:.2f}{" tie" if ratio.tie else ""}'
        axes[0].text(ratio.high, place, text, va='center', fontsize=8)
    axes[0].set_xlabel('time, peer / ours (quartiles)')
    axes[0].set_yticks(places, [_label(row) for row in rows], fontsize=8)
    axes[0].invert_yaxis()
    if panels == 2:
        known = [(i, row.memory['peer'] / row.memory['ours']) for i, row in enumerate(rows)
                 if row.memory and row.memory['ours'] > 0]  # fmt: skip
        axes[1].barh([i for i, _ in known], [ratio for _, ratio in known], color=MEMORY, height=0.7)
        for place, ratio in known:
            axes[1].text(ratio, place, f' {ratio:.2f}', va='center', fontsize=8)
        axes[1].set_xlabel('peak memory, peer / ours')
    for axis in axes:
        axis.axvline(1, color='black', linewidth=0.8)
        axis.set_xlim(0, axis.get_xlim()[1] * 1.12)
        axis.spines[['top', 'right']].set_visible(False)
    _save(figure, path)


def draw_growth(growths: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Time against pixels and against images, both axes logarithmic; the exponent in the legend."""
    figure_of = _pyplot()
    from matplotlib.ticker import LogLocator

    kinds = [('by_edge', lambda edge: edge**2, 'pixels', '²'), ('by_batch', lambda batch: batch, 'images', '')]
    kinds = [kind for kind in kinds if any(one[kind[0]] for one in growths)]
    figure, axes = figure_of(1, len(kinds), figsize=(6 * len(kinds), 4.5), squeeze=False)
    for axis, (key, amount, what, square) in zip(axes[0], kinds, strict=True):
        for one in growths:
            found = one[key]
            if found is None:
                continue
            x = [amount(int(value)) for value in found['median']]
            label = f'{one["title"]} {one["arch"]}, {one["mode"]}: a = {found["exponent"]["median"]:.2f}'
            axis.loglog(x, list(found['median'].values()), 'o-', markersize=4, label=label)
        values = sorted({int(value) for one in growths if one[key] for value in one[key]['median']})
        axis.set_xticks([amount(value) for value in values], [f'{value}{square}' for value in values])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter('{x:g}')
        axis.set_xlabel(f'{what} (time ~ {what}^a)')
        axis.set_ylabel('seconds')
        axis.grid(True, which='both', linewidth=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


def _label(row: Row) -> str:
    form = '' if row.form == 'eager' else f', {row.form}'
    layer = f' {row.part}' if row.part else ''
    size = f'{row.batch}x{row.size[0]}x{row.size[1]}'
    return f'{row.case}{layer} / {row.peer}, {size} {row.dtype}, {row.mode}{form}'


def _pyplot():
    """`subplots`, on a canvas that needs no display."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot.subplots


def _save(figure, path: str | os.PathLike) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
