"""Draws effective receptive fields of networks side by side.

    python tools/visualize.py receptive-field
    python tools/visualize.py receptive-field --mixers
    python tools/visualize.py receptive-field swin_t=timm://swin_tiny_patch4_window7_224.ms_in1k sequencer_s --num 50
    python tools/visualize.py receptive-field configs/elsa_swin_t_maskrcnn_1x.py=work_dirs/.../iter_310.pth

A row for each network, a column for each level: the absolute gradient of the positive part of the token in the middle
of the level with respect to every pixel, summed over channels, averaged over images (Luo et al., 2016; the formula
stands in `visualization/effective_field.py`). The scale is logarithmic, relative to the largest gradient of each panel;
grey is exactly 0. Below: the smallest area that holds 50 % and 95 % of the gradient, and how much of the axes and
diagonals through the middle lies in the latter.

With --mixers, the same for the modules of one stage that mix tokens, on their own, between tokens. There the patterns
of the papers are exact: the cross of Sequencer's BiLSTM2D, the windows of Swin, the 7 x 7 taps of ELSA, the dotted grid
of MaxViT.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from textwrap import fill

import cv2
import numpy as np
import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from ..drawing.files import check_out, save_figure
from ..layers import (
    BiLSTM2D,
    DecoupledDynamicFilter,
    DepthwiseMixer,
    GhostAttention,
    Involution,
    LocalAttention,
    Recurrent2D,
    RecurrentSequence,
)
from ..utils.console import say
from ..utils.errors import UserError
from .attention_maps import ATTENTIONS, attention_name
from .networks import (
    NETWORK_HELP,
    SHAPES_SIZE,
    Call,
    ViewedBackbone,
    add_shared_arguments,
    block_of,
    draw_shapes,
    load_network,
    read_picture,
    record,
)
from .panels import FONT, colour_bar, grid_of_panels, show_map

__all__ = [
    'Extent',
    'FieldPanel',
    'add_arguments',
    'draw_fields',
    'extent',
    'level_fields',
    'level_panels',
    'mixer_field',
    'mixer_panels',
    'run',
]

MIXERS = (*ATTENTIONS, BiLSTM2D, LocalAttention, DecoupledDynamicFilter, DepthwiseMixer, Involution)
MIXERS += (GhostAttention, Recurrent2D, RecurrentSequence)
ALL_FAMILIES = ('swin_t', 'elsa_swin_t', 'maxvit_t', 'sequencer_s')
DECADES = 4  # of the gradient that are told apart
NONE = '#8c8c8c'  # where the gradient is exactly 0
LETTERS = 34  # of a line above a panel
COLUMNS = 3  # of panels, where the networks have not as many of them
BLOCKS = 2  # of a stage: every module of the four families is in the first two


def level_fields(backbone: nn.Module, images: Iterable[Tensor]) -> list[np.ndarray]:
    """G of every output level, [H, W] each, in pixels of the input.

    Args:
        backbone: In eval mode; any, whose outputs are maps [B, C, h, w].
        images: Of one size, [1, 3, H, W] each.
    """
    totals, number = None, 0
    for image in images:
        x = image.clone().requires_grad_()
        levels = backbone(x)
        sums = [_positive(level[0, :, level.shape[2] // 2, level.shape[3] // 2]) for level in levels]
        fields = [torch.autograd.grad(s, x, retain_graph=True)[0][0].abs().sum(dim=0).double() for s in sums]
        totals = fields if totals is None else [a + b for a, b in zip(totals, fields, strict=True)]
        number += 1
    return [(total / number).numpy() for total in totals]


def mixer_field(calls: Sequence[Call]) -> np.ndarray:
    """G of one module between its input and its output, [H, W] in tokens.

    Args:
        calls: Of the module, one for each image.
    """
    total = 0
    for call in calls:
        x = call.x[:1].detach().clone().requires_grad_()
        y = call.module(x, *call.context)
        _, H, W, _ = y.shape
        total = total + torch.autograd.grad(_positive(y[0, H // 2, W // 2]), x)[0][0].abs().sum(dim=-1).double()
    return (total / len(calls)).numpy()


def _positive(y: Tensor) -> Tensor:
    return y.clamp(min=0).sum()


@dataclass
class Extent:
    """How far a field reaches.

    Attributes:
        half: Share of the area in the smallest set of places that holds half of the field.
        most: The same for 95 % of it.
        zero: Share of the area where the field is exactly 0.
        row: How much of the row through the centre is in the set of 95 %, in places. The row is a band as wide as the
            token at the centre.
        column: The same, down.
        diagonal: The same along both diagonals, their mean, in steps of one place across and one down.
    """

    half: float
    most: float
    zero: float
    row: float
    column: float
    diagonal: float

    @property
    def crossness(self) -> float:
        """Of axes to diagonals: 1 for an upright square, 1.4 for a disc; large for a cross."""
        return (self.row + self.column) / 2 / max(self.diagonal, 1e-9)


def extent(field: np.ndarray, centre: tuple[float, float], token: int = 1) -> Extent:
    """The numbers of a field [H, W].

    Args:
        field: G, not all 0.
        centre: Row and column of the middle of the token at the centre, in places: 0.5 for the middle of the first one.
        token: Its edge in places.

    Raises:
        ValueError: for a field that is 0 everywhere.
    """
    total = field.sum()
    if not total > 0:
        raise ValueError('the field is 0 everywhere: the output does not depend on the input')
    descending = np.sort(field, axis=None)[::-1]
    held = np.cumsum(descending) / total
    half, most = (int(np.searchsorted(held, share)) + 1 for share in (0.5, 0.95))
    kept = field >= descending[min(most, field.size) - 1]
    H, W = field.shape
    down = np.arange(H)[:, None] + 0.5 - centre[0]
    across = np.arange(W)[None] + 0.5 - centre[1]
    bands = [np.broadcast_to(abs(offset) < token / 2, field.shape)
             for offset in (down, across, down - across, down + across)]  # fmt: skip
    # on a diagonal one step meets a band of this width in as many places as on an axis
    row, column, falling, rising = ((kept & band).sum() / token for band in bands)
    return Extent(half / field.size, most / field.size, float((field == 0).mean()), row, column, (falling + rising) / 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        'networks',
        nargs='*',
        metavar='NETWORK[=WEIGHTS]',
        help=f'{NETWORK_HELP}; weights are random where none are given (default: {" ".join(ALL_FAMILIES)})',
    )
    parser.add_argument('--mixers', action='store_true', help='the modules of one stage that mix tokens instead')
    parser.add_argument('--stage', type=int, default=0, help='of the modules, counted from 0 (default: %(default)s)')
    parser.add_argument('--images', nargs='+', metavar='FILE', help='pictures to average over, cut to squares')
    parser.add_argument('--noise', action='store_true', help='average over standard normal noise')
    parser.add_argument('--num', type=int, default=16, help='of drawn scenes or noise (default: %(default)s)')
    parser.add_argument('--size', type=int, default=SHAPES_SIZE, help='edge of all images (default: %(default)s)')
    add_shared_arguments(parser, 'receptive_field.png')


def run(args: argparse.Namespace) -> None:
    if args.images and args.noise:
        raise UserError('--images and --noise: expected one of them')
    if args.num < 1 or args.size < 1:
        raise UserError(f'--num {args.num} --size {args.size}: expected at least 1')
    out = check_out(args.out, args.images)
    pictures = [_square(read_picture(file), args.size) for file in args.images or ()]
    if not pictures and not args.noise:
        pictures = [draw_shapes(args.seed + i, args.size) for i in range(args.num)]
    rows = {}
    for name in args.networks or ALL_FAMILIES:
        name, _, weights = name.partition('=')
        network = load_network(name, weights or None, args.cfg_options, args.seed)
        images = [network.prepare(picture) for picture in pictures] or _noise(args.num, args.size, args.seed)
        rows[network.name] = mixer_panels(network, images, args.stage) if args.mixers else level_panels(network, images)
        for panel in rows[network.name]:
            say(f'{network.name}, {panel.title}: {"; ".join(_numbers(panel.extent))}')
    what = 'noise' if args.noise else 'pictures' if args.images else 'scenes of Shapes'
    number = args.num if args.noise else len(pictures)
    title = f'Effective receptive fields, {args.size} x {args.size} pixels, mean over {what} ({number})'
    if args.mixers:
        title = f'Receptive fields of single modules in stage {args.stage}, mean over {what} ({number})'
    save_figure(out, draw_fields(rows, title, 'tokens' if args.mixers else 'pixels'), dpi=90)


class FieldPanel:
    """One field and what is said of it.

    Attributes:
        title: Of the output or the module.
        field: G, [H, W].
        extent: Its numbers.
    """

    def __init__(self, title: str, field: np.ndarray, token: int, size: tuple[int, int]) -> None:
        """`token` is the edge in places of a token of the output, `size` the tokens of the output."""
        self.title = title
        self.field = field
        self.extent = extent(field, tuple((edge // 2 + 0.5) * token for edge in size), token)


def level_panels(network: ViewedBackbone, images: Sequence[Tensor]) -> list[FieldPanel]:
    """The fields of all output levels, in pixels."""
    backbone = network.backbone
    with torch.no_grad():
        sizes = [tuple(level.shape[2:]) for level in backbone(images[0])]
    strides = getattr(backbone, 'out_strides', [round(images[0].shape[2] / size[0]) for size in sizes])
    levels = getattr(backbone, 'out_indices', range(len(sizes)))
    fields = level_fields(backbone, _bar(images, network.name))
    return [
        FieldPanel(f'level {i}, stride {stride}', field, stride, size)
        for i, field, stride, size in zip(levels, fields, strides, sizes, strict=True)
    ]


def mixer_panels(network: ViewedBackbone, images: Sequence[Tensor], stage: int) -> list[FieldPanel]:
    """The fields of the different modules of a stage that mix tokens, in tokens.

    Raises:
        UserError: if the network is none of this package, or has no such stage.
    """
    block_of(network.backbone, stage, 0)
    modules = {}
    for block in network.backbone.stages[stage].blocks[:BLOCKS]:
        for module in block.modules():
            if isinstance(module, MIXERS):
                modules.setdefault(_mixer_name(module), module)
    calls = [record(network.backbone, image, list(modules.values())) for image in _bar(images, network.name)]
    panels = []
    for name, of_module in zip(modules, zip(*calls, strict=True), strict=True):
        H, W = of_module[0].x.shape[1:3]
        panels.append(FieldPanel(f'{name} ({H} x {W} tokens)', mixer_field(of_module), 1, (H, W)))
    return panels


def _mixer_name(module: nn.Module) -> str:
    if isinstance(module, ATTENTIONS):
        return attention_name(module)
    if isinstance(module, LocalAttention):
        shift = f' shifted by {module.shift_size}' if module.shift_size else ''
        return f'{module.region} {module.size} x {module.size}{shift}'
    return type(module).__name__


def draw_fields(rows: dict[str, Sequence[FieldPanel]], title: str, unit: str, columns: int | None = None) -> Figure:
    """A figure of the fields of several networks, by name: a row each where all have as many, else one after the other.

    Args:
        rows: The fields of every network.
        title: Of the figure.
        unit: What a place of a field is, in the plural.
        columns: Of panels.
    """
    fields = [(name, one) for name, of_network in rows.items() for one in of_network]
    widths = {len(of_network) for of_network in rows.values()}
    columns = columns or (widths.pop() if len(widths) == 1 else min(COLUMNS, len(fields)))
    figure, panels = grid_of_panels(-(-len(fields) // columns), columns, title, panel=(2.45, 3.3))
    for panel, (name, one) in zip(panels.flat, fields, strict=False):
        relative = one.field / one.field.max()
        shown = show_map(
            panel,
            np.where(relative > 0, np.maximum(relative, 10.0**-DECADES), np.nan),
            1,
            title=f'{fill(name, LETTERS)}\n{one.title}',
            norm=LogNorm(10.0**-DECADES, 1),
            cmap='magma',
        )
        panel.set_axis_on()
        panel.set_facecolor(NONE)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_xlabel('\n'.join(_numbers(one.extent)), fontsize=FONT)
    colour_bar(figure, shown, list(panels.flat), 'gradient / largest in the panel')
    figure.legend(handles=[Patch(color=NONE, label='exactly 0')], loc='outside lower right', fontsize=FONT)
    figure.supxlabel(
        'Below a panel: the smallest area that holds 50 % and 95 % of the gradient;\n'
        f'{unit} of the row, column and diagonals (mean) through the middle in the latter; where it is exactly 0.\n'
        f'Logarithmic scale; 1e-{DECADES} and less are black.',
        fontsize=FONT,
        x=0.02,
        ha='left',
    )
    return figure


def _numbers(numbers: Extent) -> list[str]:
    return [
        f'50 %: {numbers.half:.2%} of the area, 95 %: {numbers.most:.1%}'.replace('%', ' %').replace('  %', ' %'),
        f'row {numbers.row:.0f}, column {numbers.column:.0f}, diagonal {numbers.diagonal:.0f}',
        f'exactly 0: {numbers.zero:.1%}'.replace('%', ' %'),
    ]


def _square(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle of a picture, size x size."""
    H, W = picture.shape[:2]
    edge = min(H, W)
    top, left = (H - edge) // 2, (W - edge) // 2
    middle = np.ascontiguousarray(picture[top : top + edge, left : left + edge])
    return cv2.resize(middle, (size, size), interpolation=cv2.INTER_AREA if edge > size else cv2.INTER_LINEAR)


def _noise(number: int, size: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, size, size, generator=generator) for _ in range(number)]


def _bar(images: Sequence[Tensor], name: str):
    console = Console(stderr=True)
    return track(images, name, console=console, transient=True, disable=not sys.stderr.isatty())
