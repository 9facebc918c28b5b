"""An `Architecture` as a picture: the network from the image to its outputs, and below it one block of each kind."""

import json
import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mmext_backbones.utils.files import in_place

from .tracing import Architecture, Kind

__all__ = ['draw', 'write_drawing']

WIDTH = 7.4  # inches; the axes count in inches too, downwards
INK, PALE, PAPER = '#22303c', '#f1f4f7', '#ffffff'
COLOURS = ('#2f6f9f', '#c8782a', '#5f8f3e', '#8a5a9e', '#9a3b3b', '#3b8f8a')
TEXT, SMALL = 8.5, 7.6
LINE = 0.15  # of small text
GAP = 0.2
SETTINGS = {'svg.fonttype': 'path', 'svg.hashsalt': 'mmext_backbones', 'font.family': 'DejaVu Sans'}


def draw(architecture: Architecture, title: str) -> Figure:
    """The picture, 7.4 inches wide, as high as it needs."""
    columns = [_column(kind) for kind in architecture.kinds]
    top = 0.5 + _network_height(architecture)
    height = top + 0.7 + max(sum(part[2] for part in column) for column in columns)
    figure = Figure(figsize=(WIDTH, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis('off')
    H, W = architecture.size
    axes.text(0.15, 0.24, title, fontsize=11, weight='bold', color=INK, va='center')
    axes.text(WIDTH - 0.15, 0.24, f'channels x height x width, for an image of {H} x {W} pixels', fontsize=SMALL,
              color=INK, va='center', ha='right')  # fmt: skip
    _draw_network(axes, architecture, 0.5)
    _draw_blocks(axes, architecture, columns, top + 0.25)
    return figure


def write_drawing(architecture: Architecture, title: str, path: Path) -> None:
    """Writes the picture whole, as .svg or .png. An SVG carries the data it was drawn from as its description."""
    metadata = {}
    if path.suffix == '.svg':
        data = json.dumps(architecture.to_dict(), ensure_ascii=False)
        metadata = {'Title': title, 'Description': data, 'Date': None, 'Creator': None}
    with matplotlib.rc_context(SETTINGS), in_place(path) as partial:
        draw(architecture, title).savefig(partial, format=path.suffix[1:], dpi=120, metadata=metadata)


# --------------------------------------------------------------------------------------------------------------------
# The network: image, stem, stages and what lies between them, and the outputs on the right

LEFT, FUNNEL, OUTPUTS = 0.15, (4.3, 2.75), 4.95  # the widest and the narrowest stage, and where the outputs begin
STAGE_HEIGHT, STEP_PAD, LINE_LENGTH = 0.62, 0.12, 44


def _network_height(architecture: Architecture) -> float:
    heights = [0.3, _steps_height(architecture.stem)]
    for stage in architecture.stages:
        heights.append(STAGE_HEIGHT)
        if stage.downsample:
            heights.append(_steps_height(stage.downsample))
    return sum(heights) + GAP * len(heights)


def _steps_height(steps: tuple[str, ...]) -> float:
    return LINE * len(_lines(steps)) + STEP_PAD


def _lines(steps: tuple[str, ...]) -> list[str]:
    """The steps one after another, in as few lines as have room for them."""
    lines = ['']
    for i, step in enumerate(steps):
        for j, piece in enumerate(step.split('\n')):
            between = ' ' if j else ' · ' if i else ''
            if lines[-1] and len(lines[-1] + between + piece) > LINE_LENGTH:
                lines.append(piece)
            else:
                lines[-1] += between + piece
    return lines


def _draw_network(axes, architecture: Architecture, y: float) -> None:
    centre = LEFT + FUNNEL[0] / 2
    H, W = architecture.size
    _box(axes, centre, y, FUNNEL[0], 0.3, f'image   {architecture.in_channels} x {H} x {W}', PALE)
    y = _arrow_down(axes, centre, y + 0.3)
    y = _draw_steps(axes, centre, y, FUNNEL[0], architecture.stem)
    y = _arrow_down(axes, centre, y)
    places = []
    colours = {kind.name: COLOURS[i % len(COLOURS)] for i, kind in enumerate(architecture.kinds)}
    first = architecture.stages[0].stride
    for i, stage in enumerate(architecture.stages):
        width = FUNNEL[0] - (FUNNEL[0] - FUNNEL[1]) * min(1.0, math.log2(stage.stride / first) / 3)
        _box(axes, centre, y, width, STAGE_HEIGHT, '', PAPER, edge=INK)
        shape = ' x '.join(map(str, stage.shape))
        axes.text(centre - width / 2 + 0.1, y + 0.17, f'stage {i}', fontsize=TEXT, weight='bold', color=INK,
                  va='center')  # fmt: skip
        axes.text(centre + width / 2 - 0.1, y + 0.17, f'{shape}', fontsize=SMALL, color=INK, va='center', ha='right')
        _draw_chips(axes, stage.blocks, colours, centre, y + 0.32, width - 0.2)
        places.append((centre + width / 2, y))
        y += STAGE_HEIGHT
        if i + 1 < len(architecture.stages):
            y = _arrow_down(axes, centre, y)
        if stage.downsample:
            y = _draw_steps(axes, centre, y, width, stage.downsample)
            y = _arrow_down(axes, centre, y)
    _draw_outputs(axes, architecture, places)


def _draw_chips(axes, blocks: str, colours: dict[str, str], centre: float, y: float, width: float) -> None:
    """A square for each block, with the name of its kind."""
    step = min(0.27, width / len(blocks))
    for j, name in enumerate(blocks):
        x = centre + (j - (len(blocks) - 1) / 2) * step
        _box(axes, x, y, step * 0.86, 0.22, name if step > 0.12 else '', colours[name], ink=PAPER, pad=0.02)


def _draw_outputs(axes, architecture: Architecture, places: list[tuple[float, float]]) -> None:
    """On the right, beside the stages that they come from; those of one stage above each other."""
    for stage, (right, y) in enumerate(places):
        outputs = [output for output in architecture.outputs if output.stage == stage]
        heights = [0.34 + LINE * len(_output_lines(output.steps)) for output in outputs]
        place = y + STAGE_HEIGHT / 2 - (sum(heights) + 0.1 * (len(heights) - 1)) / 2
        for output, height in zip(outputs, heights, strict=True):
            shape = ' x '.join(map(str, output.shape))
            _box(axes, OUTPUTS + (WIDTH - 0.15 - OUTPUTS) / 2, place, WIDTH - 0.15 - OUTPUTS, height, '', PALE)
            axes.text(OUTPUTS + 0.1, place + 0.17, f'{shape}', fontsize=SMALL, weight='bold', color=INK, va='center')
            axes.text(WIDTH - 0.25, place + 0.17, f'stride {output.stride}', fontsize=SMALL, color=INK, va='center',
                      ha='right')  # fmt: skip
            for j, line in enumerate(_output_lines(output.steps)):
                axes.text(OUTPUTS + 0.1, place + 0.36 + LINE * j, line, fontsize=SMALL, color=INK, va='center')
            _arrow(axes, (right, y + STAGE_HEIGHT / 2), (OUTPUTS, place + height / 2))
            place += height + 0.1


def _output_lines(steps: tuple[str, ...]) -> list[str]:
    return [line for step in steps for line in step.replace(', stride', ',\nstride').split('\n')]


def _draw_steps(axes, centre: float, y: float, width: float, steps: tuple[str, ...]) -> float:
    height = _steps_height(steps)
    _box(axes, centre, y, width, height, '\n'.join(_lines(steps)), PALE)
    return y + height


# --------------------------------------------------------------------------------------------------------------------
# The blocks: a column for each kind, its steps from top to bottom, a line beside each residual branch


def _column(kind: Kind) -> list[tuple[str, str, float]]:
    """(what, words, height) of everything in a column."""
    parts = []
    for branch, shortcut in zip(kind.branches, kind.shortcuts, strict=True):
        parts.append(('split', shortcut.replace(', ', ',\n', 1), 0.12))
        parts += [('step', step, LINE * (step.count('\n') + 1) + 0.11) for step in branch]
        parts.append(('sum', '', 0.3))
    return parts


def _draw_blocks(axes, architecture: Architecture, columns: list, top: float) -> None:
    width = min(3.4, (WIDTH - 0.3) / len(columns))
    left = (WIDTH - width * len(columns)) / 2
    for i, (kind, column) in enumerate(zip(architecture.kinds, columns, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        x, y = left + i * width, top
        centre, box = x + width / 2 + 0.14, width - 0.5
        axes.text(centre, y + 0.1, f'block {kind.name}, as in stage {kind.stage}', fontsize=TEXT, weight='bold',
                  color=colour, ha='center', va='center')  # fmt: skip
        y += 0.32
        split = y
        for what, words, height in column:
            if what == 'split':
                split, shortcut = y, words
                axes.plot([centre, centre], [y - 0.06, y + height], color=INK, lw=0.9, zorder=0)
            elif what == 'step':
                _box(axes, centre, y + 0.02, box, height - 0.04, words, PALE, edge=colour)
                axes.plot([centre, centre], [y, y + height], color=INK, lw=0.9, zorder=0)
            else:
                _draw_sum(axes, centre, x + 0.2, split, y + height / 2, shortcut)
            y += height


def _draw_sum(axes, centre: float, side: float, split: float, y: float, shortcut: str) -> None:
    """The end of a residual branch, and the line around it, which does what `shortcut` says."""
    axes.plot([centre, side, side, centre - 0.09], [split, split, y, y], color=INK, lw=0.9, zorder=0)
    axes.plot([centre, centre], [y - 0.16, y + 0.16], color=INK, lw=0.9, zorder=0)
    axes.text(centre, y, '+', fontsize=9, color=INK, ha='center', va='center',
              bbox={'boxstyle': 'circle,pad=0.12', 'facecolor': PAPER, 'edgecolor': INK, 'linewidth': 0.9})  # fmt: skip
    if shortcut:
        axes.text(side, (split + y) / 2, shortcut.replace('\n', ' '), fontsize=SMALL, color=INK, rotation=90,
                  ha='center', va='center', bbox={'facecolor': PAPER, 'edgecolor': 'none', 'pad': 1.5})  # fmt: skip


# --------------------------------------------------------------------------------------------------------------------


def _box(axes, centre: float, y: float, width: float, height: float, text: str, face: str, *, edge: str | None = None,
         ink: str = INK, pad: float = 0.05) -> None:  # fmt: skip
    style = f'round,pad=0,rounding_size={pad}'
    axes.add_patch(FancyBboxPatch((centre - width / 2, y), width, height, boxstyle=style, facecolor=face,
                                  edgecolor=edge or face, linewidth=0.9))  # fmt: skip
    axes.text(centre, y + height / 2, text, fontsize=SMALL, color=ink, ha='center', va='center', linespacing=1.15)


def _arrow_down(axes, x: float, y: float) -> float:
    _arrow(axes, (x, y), (x, y + GAP))
    return y + GAP


def _arrow(axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=7, color=INK, linewidth=0.9,
                                   shrinkA=0, shrinkB=0))  # fmt: skip
