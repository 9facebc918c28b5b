"""Charts of training curves, of one training or several."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cycler import Cycler
    from matplotlib.figure import Figure

__all__ = ['Line', 'Panel', 'Points', 'draw_chart', 'is_main_metric']

FEW_LINES = 8  # of a panel, up to which matplotlib's own colours differ and a legend finds room among them
Points = list[tuple[int, float]]  # iteration, value


@dataclass
class Line:
    """One curve.

    Attributes:
        label: In the legend.
        points: What is drawn.
        raw: Drawn pale behind it: what `points` were smoothed from.
        style: Of matplotlib's `plot`.
    """

    label: str
    points: Points
    raw: Points = field(default_factory=list)
    style: dict[str, Any] = field(default_factory=dict)


@dataclass
class Panel:
    """Curves over the same axes.

    Attributes:
        title: Above it.
        ylabel: Beside it.
        lines: The curves.
        limits: Of the y axis; matplotlib's choice where None.
        note: In the middle of a panel without lines.
    """

    title: str
    ylabel: str
    lines: list[Line]
    limits: tuple[float | None, float | None] = (None, None)
    note: str = ''


def draw_chart(
    panels: Sequence[Panel], title: str, columns: int, size: tuple[float, float], one_legend: bool = False
) -> 'Figure':
    """Panels in rows, over the same iterations.

    Args:
        panels: At least one.
        title: Above all.
        columns: Panels in a row.
        size: Of a panel, inches.
        one_legend: The panels have the same lines: one legend for all of them, below.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    handles = {}
    for axes, panel in zip(grid, panels, strict=False):
        if len(panel.lines) > FEW_LINES:
            axes.set_prop_cycle(_many_styles())
        for line in panel.lines:
            (drawn,) = axes.plot(*zip(*line.points, strict=True), label=line.label, **line.style)
            if line.raw:
                axes.plot(*zip(*line.raw, strict=True), color=drawn.get_color(), alpha=0.25, linewidth=0.8)
            handles.setdefault(line.label, drawn)
        axes.set(title=panel.title, xlabel='iteration', ylabel=panel.ylabel, ylim=panel.limits)
        axes.grid(alpha=0.3)
        if len(panel.lines) > FEW_LINES and not one_legend:  # it would hide the curves: below them
            axes.legend(fontsize=7, loc='upper center', bbox_to_anchor=(0.5, -0.14), ncols=3)
        elif panel.lines and not one_legend:
            axes.legend(fontsize=8)
        if not panel.lines:
            axes.text(0.5, 0.5, panel.note, ha='center', transform=axes.transAxes)
    _share_iterations(grid[: len(panels)])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if one_legend and len(handles) > 1:
        figure.legend(handles.values(), handles.keys(), loc='outside lower center', ncols=min(4, len(handles)))
    return figure


def _many_styles() -> 'Cycler':
    """Twenty colours, of lines and then of dashed lines."""
    from cycler import cycler
    from matplotlib import colormaps

    return cycler(linestyle=['-', '--', ':']) * cycler(color=list(colormaps['tab20'].colors))


def _share_iterations(grid: Sequence[Any]) -> None:
    limits = [axes.get_xlim() for axes in grid if axes.lines]
    for axes in grid:
        if limits:
            axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))


def is_main_metric(name: str) -> bool:
    """Leaves out timings and COCO's numbers by object size or for a single threshold above 0.5."""
    return not name.endswith(('_s', '_m', '_l', '_75', 'time'))
