"""Draws the filters of an ELSA block: dynamic ones at points of a picture, and static ones.

    python tools/visualize.py filters elsa_swin_t elsa_swin_t.pth cat.jpg --stage 1
    python tools/visualize.py filters configs/elsa_swin_t_maskrcnn_1x.py work_dirs/.../iter_310.pth --point 60 80

At every token a head g filters its channels c with A[g] + S[c]: A is computed from the picture (the softmax over the
7 x 7 taps: positive, its sum is 1), S is learnt, one filter a channel (the ghost head). Of S each head shows the mean
over its channels and the channel with the largest norm. (ELSA-VOLO multiplies A[g] by a learnt factor a channel and tap
before, which is not drawn.)
"""

import argparse
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ..drawing.files import check_out, save_figure
from ..layers import ELSAAttention
from ..utils.console import say
from ..utils.errors import UserError
from .attention import add_place_arguments, choose_heads, token_at
from .attention_maps import elsa_filters
from .networks import ViewedBackbone, add_network_arguments, block_of, load_network, read_picture, record, sort_files
from .panels import FONT, colour_bar, grid_of_panels, mark, show_map, show_picture

__all__ = ['add_arguments', 'draw_filters', 'run']

PLACES = (0.25, 0.75)  # of the points along both axes, where none are given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, 'filters.png')
    add_place_arguments(parser)
    parser.add_argument(
        '--point',
        type=float,
        nargs=2,
        action='append',
        metavar=('X', 'Y'),
        help='in pixels of the drawn picture; may be given several times (default: four points)',
    )


def run(args: argparse.Namespace) -> None:
    out = check_out(args.out, args.files)
    weights, file = sort_files(args.files)
    picture = read_picture(file, args.size, args.seed)
    network = load_network(args.network, weights, args.cfg_options, args.seed)
    H, W = picture.shape[:2]
    points = args.point or [(W * x, H * y) for y in PLACES for x in PLACES]
    save_figure(out, draw_filters(network, picture, args.stage, args.block, points, args.heads))


def draw_filters(
    network: ViewedBackbone,
    picture: np.ndarray,
    stage: int,
    block: int,
    points: Sequence[tuple[float, float]],
    heads: list[int] | None = None,
) -> Figure:
    """A figure with a row for each point and two for the learnt filters, a column for each head.

    Args:
        network: With ELSA attention in that block.
        picture: RGB, [H, W, 3].
        stage: Counted from 0.
        block: Of the stage.
        points: (x, y) in pixels.
        heads: That are drawn; the first few when None.

    Raises:
        UserError: if the block has no ELSA filters, or there is no such block, point or head.
    """
    module = getattr(block_of(network.backbone, stage, block), 'attn', None)
    if not isinstance(module, ELSAAttention):
        raise UserError(
            f'stage {stage} of {type(network.backbone).__name__} has no ELSA filters: expected an ELSA-Swin, stages '
            '0 to 2, or an ELSA-VOLO, stage 0. `attention` draws windows and grids.'
        )
    (call,) = record(network.backbone, network.prepare(picture), [module])
    stride = network.backbone.stage_strides[stage]
    tokens = [token_at(call, stride, point, picture) for point in points]
    filters = [elsa_filters(call, *token) for token in tokens]
    dynamic = [A.numpy() for A, _ in filters]  # [heads, k, k] each
    k = module.kernel_size
    static = filters[0][1].detach().view(module.num_heads, -1, k, k).numpy()  # [heads, C / heads, k, k]
    shown = choose_heads(heads, module.num_heads)
    _tell(dynamic, static, tokens)

    columns = 1 + len(shown)
    title = f'ELSA filters of {network.name}: stage {stage}, block {block}, {k} x {k} taps of {stride} pixels'
    if len(shown) < module.num_heads:
        title += f', of {module.num_heads} heads {", ".join(map(str, shown))}'
    figure, panels = grid_of_panels(len(points) + 2, columns, title, panel=(1.75, 1.75))

    largest = max(A[shown].max() for A in dynamic)
    for i, (A, (row, column)) in enumerate(zip(dynamic, tokens, strict=True)):
        x, y = points[i]
        show_picture(panels[i, 0], picture, f'computed at {x:g}, {y:g}:\ntoken ({row}, {column})')
        mark(panels[i, 0], row, column, stride)
        _crop(panels[i, 0], row, column, stride, k)
        for axes, head in zip(panels[i, 1:], shown, strict=True):
            drawn = show_map(axes, A[head], 1, title=f'head {head}', vmin=0, vmax=largest)
    colour_bar(figure, drawn, list(panels[: len(points)].flat), 'A, computed (sum 1)')

    ghosts = {
        'learnt, mean over\nthe channels\nof a head': lambda head: (static[head].mean(axis=0), f'head {head}'),
        'learnt, the channel\nof a head with the\nlargest norm': lambda head: _strongest(static, head),
    }
    for axes, (text, ghost) in zip(panels[len(points) :], ghosts.items(), strict=True):
        axes[0].text(0.5, 0.5, text, fontsize=FONT, ha='center', va='center', transform=axes[0].transAxes)
        drawn_of = [ghost(head) for head in shown]
        limit = max(1e-12, max(abs(values).max() for values, _ in drawn_of))
        for panel, (values, name) in zip(axes[1:], drawn_of, strict=True):
            drawn = show_map(panel, values, 1, title=name, cmap='RdBu_r', vmin=-limit, vmax=limit)
        colour_bar(figure, drawn, list(axes), 'S, learnt')
    return figure


def _strongest(static: np.ndarray, head: int) -> tuple[np.ndarray, str]:
    norms = np.square(static[head]).sum(axis=(1, 2))
    channel = int(norms.argmax())
    return static[head, channel], f'channel {head * static.shape[1] + channel}'


def _crop(axes, row: int, column: int, stride: int, k: int) -> None:
    """The pixels of the taps; beyond the picture nothing."""
    top, left = (row - k // 2) * stride, (column - k // 2) * stride
    axes.set_xlim(left, left + k * stride)
    axes.set_ylim(top + k * stride, top)


def _tell(dynamic: Sequence[np.ndarray], static: np.ndarray, tokens: Sequence[tuple[int, int]]) -> None:
    for i, (A, (row, column)) in enumerate(zip(dynamic, tokens, strict=True)):
        entropy = np.exp(-(A * np.log(np.maximum(A, 1e-30))).sum(axis=(1, 2)))
        say(
            f'point {i}, token ({row}, {column}): largest weight {A.max():.3f}; a head spreads over '
            f'{entropy.min():.1f} to {entropy.max():.1f} taps (exp of the entropy) of {A[0].size}'
        )
    sums = np.abs(static).sum(axis=(2, 3))
    say(f'learnt filters: sum of |S| {sums.min():.2f} to {sums.max():.2f} a channel, mean {sums.mean():.2f} (of A: 1)')
