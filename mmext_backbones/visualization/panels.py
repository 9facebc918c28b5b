"""Panels of a figure: pictures, maps of tokens over them, and marks."""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

__all__ = ['colour_bar', 'grid_of_panels', 'mark', 'outline', 'show_map', 'show_picture']

FONT = 8
PER_INCH = 12  # letters of a title
MARK = '#00e5ff'  # of the point that is asked about: in no colour map used here


def grid_of_panels(
    rows: int,
    columns: int,
    title: str,
    *,
    panel: tuple[float, float] = (2.1, 2.35),
) -> tuple[Figure, np.ndarray]:
    """A figure and its empty panels, an array [rows, columns]; `panel` is width and height in inches."""
    figure = Figure(figsize=(columns * panel[0] + 0.6, rows * panel[1] + 0.55), layout='constrained')
    figure.get_layout_engine().set(h_pad=0.08)
    figure.suptitle(fill(title, int(PER_INCH * figure.get_figwidth())), fontsize=FONT + 2)
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    return figure, panels


def show_picture(axes: Axes, picture: np.ndarray, title: str = '', *, grey: bool = False) -> None:
    """An RGB picture [H, W, 3], its axes in pixels; `grey` as a ground for what is drawn upon it."""
    H, W = picture.shape[:2]
    if grey:
        picture = np.repeat(picture.mean(axis=2, keepdims=True) * 0.6 + 80, 3, axis=2).astype(np.uint8)
    axes.imshow(picture, extent=(0, W, H, 0), interpolation='nearest')
    axes.set_title(title, fontsize=FONT)


def show_map(
    axes: Axes, values: np.ndarray, stride: float, size: tuple[int, int] | None = None, title: str = '', **options
) -> ScalarMappable:
    """A map [H, W], or colours [H, W, 3], each token over its stride x stride pixels.

    Args:
        axes: Where.
        values: NaN is left open.
        stride: Pixels of a token.
        size: (H, W) in pixels of the picture: what lies beyond it is padding and not shown.
        title: Of the panel.
        options: Of `Axes.imshow`.
    """
    h, w = values.shape[:2]
    shown = axes.imshow(values, extent=(0, w * stride, h * stride, 0), interpolation='nearest', **options)
    if size is not None:
        axes.set_xlim(0, min(size[1], w * stride))
        axes.set_ylim(min(size[0], h * stride), 0)
    axes.set_title(title, fontsize=FONT)
    return shown


def outline(axes: Axes, mask: np.ndarray, stride: float, color: str = 'white', width: float = 1.2) -> None:
    """The border of a set of tokens, a bool map [H, W]."""
    padded = np.pad(mask, 1)
    rows, columns = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    lines = [[(x, y), (x + 1, y)] for y, x in zip(rows, columns, strict=True)]
    rows, columns = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    lines += [[(x, y), (x, y + 1)] for y, x in zip(rows, columns, strict=True)]
    axes.add_collection(LineCollection(np.array(lines) * stride, colors=color, linewidths=width))


def mark(axes: Axes, row: int, column: int, stride: float) -> None:
    """The token that is asked about."""
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    axes.plot(x, y, marker='s', markersize=5, markerfacecolor='none', markeredgecolor=MARK, markeredgewidth=1.4)


def colour_bar(figure: Figure, shown: ScalarMappable, panels: Sequence[Axes], label: str, **options) -> None:
    """The scale of a map, beside the panels that share it."""
    bar = figure.colorbar(shown, ax=list(panels), fraction=0.05, pad=0.01, **options)
    bar.set_label(label, fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT - 1)
