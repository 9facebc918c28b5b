"""Draws where a token looks: the attention weights of one block, over the picture.

    python tools/visualize.py attention swin_t --stage 0 --block 1 --point 60 80
    python tools/visualize.py attention configs/maxvit_t_maskrcnn_1x.py work_dirs/.../epoch_12.pth cat.jpg --stage 2
    python tools/visualize.py attention elsa_swin_t elsa_swin_t.pth cat.jpg --stage 1 --heads 0 3

Swin: its window or shifted window. MaxViT: the window, and below it the grid. ELSA-Swin: the 7 x 7 filter around the
token, without its learnt half (see `filters`), and windows in the last stage. VOLO: in the first stage the mean over
the windows of outlook attention that hold the token, after it all tokens of the map. A white line surrounds what the
token can attend to, a blue square is the token itself.

The weights are computed from the module's own weights and input. Multiplied with the values and projected they must
give the module's output, or nothing is drawn; how well they do is printed.
"""

import argparse

import numpy as np
from matplotlib.figure import Figure

from ..drawing.files import check_out, save_figure
from ..utils.console import say
from ..utils.errors import UserError
from .attention_maps import ATTENTIONS, TokenAttention, attention_name, token_attention
from .networks import (
    Call,
    ViewedBackbone,
    add_network_arguments,
    block_of,
    load_network,
    read_picture,
    record,
    sort_files,
)
from .panels import colour_bar, grid_of_panels, mark, outline, show_map, show_picture

__all__ = ['add_arguments', 'add_place_arguments', 'choose_heads', 'draw_attention', 'run', 'token_at']

TOLERANCE = 1e-2  # float32 sums in another order, in units of `TokenAttention.error`; wrong weights are off by tenths
HEADS = 10  # are drawn where nobody chooses
COLUMNS = 6
MARGIN = 3  # tokens around what is attended to


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """Which block, where in the picture, which heads."""
    parser.add_argument('--stage', type=int, default=0, help='counted from 0 (default: %(default)s)')
    parser.add_argument('--block', type=int, default=0, help='of the stage, counted from 0 (default: %(default)s)')
    parser.add_argument(
        '--heads', type=int, nargs='+', metavar='HEAD', help=f'that are drawn (default: the first {HEADS})'
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, 'attention.png')
    add_place_arguments(parser)
    parser.add_argument(
        '--point', type=float, nargs=2, metavar=('X', 'Y'), help='in pixels of the drawn picture (default: its middle)'
    )


def run(args: argparse.Namespace) -> None:
    out = check_out(args.out, args.files)
    weights, file = sort_files(args.files)
    picture = read_picture(file, args.size, args.seed)
    network = load_network(args.network, weights, args.cfg_options, args.seed)
    point = args.point or (picture.shape[1] / 2, picture.shape[0] / 2)
    save_figure(out, draw_attention(network, picture, args.stage, args.block, point, args.heads))


def draw_attention(
    network: ViewedBackbone,
    picture: np.ndarray,
    stage: int,
    block: int,
    point: tuple[float, float],
    heads: list[int] | None = None,
) -> Figure:
    """A figure with the picture, the mean and the heads of every attention module of a block.

    Args:
        network: Of this package.
        picture: RGB, [H, W, 3].
        stage: Counted from 0.
        block: Of the stage.
        point: (x, y) in pixels.
        heads: That are drawn; the first few when None.

    Raises:
        UserError: if the block has no attention, or there is no such block, point or head.
    """
    modules = [
        module for module in block_of(network.backbone, stage, block).modules() if isinstance(module, ATTENTIONS)
    ]
    if not modules:
        raise UserError(
            f'{type(network.backbone).__name__} has no attention: no weights between tokens to draw. '
            '`receptive-field --mixers` shows what its tokens depend on.'
        )
    found = []
    for call in record(network.backbone, network.prepare(picture), modules):
        stride = network.backbone.stage_strides[stage]
        row, column = token_at(call, stride, point, picture)
        attention = token_attention(call, row, column)
        name = attention_name(call.module)
        if not attention.error < TOLERANCE:
            raise RuntimeError(
                f'{name}: weights x values differ from the output of the module by {attention.error:.1e}'
            )
        say(
            f'{name}: token ({row}, {column}) looks at {int(attention.attended.sum())} tokens; largest weight '
            f'{attention.weights.max():.3f}; {attention.beyond.mean():.1%} beyond the map; '
            f'weights x values differ from its output by {attention.error:.0e}'
        )
        found.append((name, row, column, attention))

    shown = choose_heads(heads, modules[0].num_heads)
    lines = -(-(len(shown) + 2) // COLUMNS)
    columns = -(-(len(shown) + 2) // lines)
    H, W = found[0][3].attended.shape
    title = f'{network.name}: stage {stage}, block {block} ({H} x {W} tokens of {stride} x {stride} pixels)'
    if len(shown) < modules[0].num_heads:
        title += f', of {modules[0].num_heads} heads {", ".join(map(str, shown))}'
    figure, panels = grid_of_panels(lines * len(found), columns, title, panel=(2.1, 2.45))
    for i, one in enumerate(found):
        _draw_one(figure, panels[i * lines : (i + 1) * lines], picture, stride, shown, *one)
    return figure


def token_at(call: Call, stride: int, point: tuple[float, float], picture: np.ndarray) -> tuple[int, int]:
    """Row and column of the token over a point (x, y) in pixels.

    Raises:
        UserError: for a point outside the picture.
    """
    x, y = point
    H, W = picture.shape[:2]
    if not (0 <= x < W and 0 <= y < H):
        raise UserError(f'--point {x:g} {y:g}: expected a point of the picture, 0 <= X < {W} and 0 <= Y < {H}')
    rows, columns = call.x.shape[1:3]
    return min(int(y // stride), rows - 1), min(int(x // stride), columns - 1)


def choose_heads(heads: list[int] | None, num_heads: int) -> list[int]:
    """The heads that are drawn.

    Raises:
        UserError: for a head that does not exist.
    """
    if heads is None:
        return list(range(min(HEADS, num_heads)))
    if any(not 0 <= head < num_heads for head in heads):
        raise UserError(f'--heads {" ".join(map(str, heads))}: expected 0 to {num_heads - 1}')
    return heads


def _draw_one(
    figure: Figure,
    panels: np.ndarray,
    picture: np.ndarray,
    stride: int,
    heads: list[int],
    name: str,
    row: int,
    column: int,
    attention: TokenAttention,
) -> None:
    """One module: lines of panels, the picture first, then the mean over all heads and the heads."""
    attended = attention.attended.numpy()
    maps = {'mean of all heads': attention.weights.mean(dim=0)}
    maps |= {f'head {head}': attention.weights[head] for head in heads}
    largest = max(weights.max().item() for weights in maps.values())
    show_picture(panels.flat[0], picture, f'{name}\nthe picture')
    outline(panels.flat[0], attended, stride)
    mark(panels.flat[0], row, column, stride)

    H, W = picture.shape[:2]
    rows, columns = np.nonzero(attended)
    # the tokens of a grid are drawn larger than they are
    apart = len(rows) > 1 and not (attended[1:] & attended[:-1]).any()
    near = [(rows.min() - MARGIN) * stride, (rows.max() + 1 + MARGIN) * stride]
    beside = [(columns.min() - MARGIN) * stride, (columns.max() + 1 + MARGIN) * stride]
    for axes, (title, weights) in zip(panels.flat[1:], maps.items(), strict=False):
        show_picture(axes, picture, f'{title}\nlargest {weights.max():.3f}', grey=True)
        if apart:
            x, y = ((places + 0.5) * stride for places in (columns, rows))
            shown = axes.scatter(x, y, 30, weights.numpy()[attended], 's', vmin=0, vmax=largest)
        else:
            values = np.where(attended, weights.numpy(), np.nan)
            shown = show_map(axes, values, stride, title=axes.get_title(), vmin=0, vmax=largest)
            outline(axes, attended, stride, width=0.8)
        mark(axes, row, column, stride)
        axes.set_xlim(max(0, beside[0]), min(W, beside[1]))
        axes.set_ylim(min(H, near[1]), max(0, near[0]))
    beyond = attention.beyond.mean().item()
    label = f'attention weight (all alike: {(1 - beyond) / len(rows):.3f})'
    if beyond > 1e-6:
        label += f', {beyond:.1%} beyond the map'
    colour_bar(figure, shown, list(panels.flat), label)
