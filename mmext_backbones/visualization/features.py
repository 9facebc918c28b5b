"""Draws the maps that a backbone gives to a neck or head, level by level.

    python tools/visualize.py features elsa_swin_t
    python tools/visualize.py features configs/swin_t_upernet_160k.py work_dirs/.../iter_160000.pth street.jpg
    python tools/visualize.py features swin_t timm://swin_tiny_patch4_window7_224.ms_in1k cat.jpg --channels 3

Each level is drawn four ways: root mean square over the channels (how strong a place answers), mean over the channels,
the three principal components of its tokens as red, green and blue (places of one colour have alike features), and on
request the channels that vary most. Where a norm makes the output, the first two are drawn before it: a layer norm
gives every token the same ones. Any backbone of any config will do.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..backbones.base import DenseBackbone
from ..drawing.files import check_out, save_figure
from ..utils.console import say
from ..utils.errors import UserError
from .networks import ViewedBackbone, add_network_arguments, load_network, read_picture, record, sort_files
from .panels import FONT, colour_bar, grid_of_panels, show_map, show_picture

__all__ = ['Level', 'add_arguments', 'components', 'draw_features', 'levels_of', 'run']

TAILS = (1, 99)  # percentiles of a component that become no and full colour


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network_arguments(parser, 'features.png')
    parser.add_argument(
        '--channels', type=int, default=0, metavar='N', help='draw the N channels that vary most too (default: 0)'
    )


def run(args: argparse.Namespace) -> None:
    if args.channels < 0:
        raise UserError(f'--channels {args.channels}: expected 0 or more')
    out = check_out(args.out, args.files)
    weights, file = sort_files(args.files)
    picture = read_picture(file, args.size, args.seed)
    network = load_network(args.network, weights, args.cfg_options, args.seed)
    save_figure(out, draw_features(network, picture, args.channels))


@dataclass
class Level:
    """One output of a backbone for one image.

    Attributes:
        stride: In pixels.
        output: [C, h, w].
        before: Its input where a norm makes the output, [C, h, w]; else None.
    """

    stride: int
    output: Tensor
    before: Tensor | None

    @property
    def name(self) -> str:
        C, h, w = self.output.shape
        return f'stride {self.stride}, {h} x {w}, {C} channels'


def levels_of(network: ViewedBackbone, picture: np.ndarray) -> list[Level]:
    """The output maps for a picture, finest first."""
    image, backbone = network.prepare(picture), network.backbone
    indices = getattr(backbone, 'out_indices', ())
    norms = [getattr(backbone, f'norm{i}', None) if isinstance(backbone, DenseBackbone) else None for i in indices]
    calls = iter(record(backbone, image, [norm for norm in norms if norm is not None]))
    with torch.no_grad():
        outputs = [level[0] for level in backbone(image)]
    levels = []
    for i, output in enumerate(outputs):
        _, h, w = output.shape
        # a foreign backbone does not tell its strides
        stride = backbone.out_strides[i] if hasattr(backbone, 'out_strides') else round(image.shape[2] / h)
        normed = i < len(norms) and norms[i] is not None
        before = next(calls).x[0, :h, :w].permute(2, 0, 1) if normed else None
        levels.append(Level(stride, output, before))
    return levels


def components(level: Tensor) -> tuple[np.ndarray, float]:
    """The three principal components of the tokens of a map [C, h, w] as colours.

    Their signs are such that the largest coefficient of each is positive; each is stretched from its 1st to its 99th
    percentile.

    Returns:
        Colours [h, w, 3] from 0 to 1, grey where a component does not vary; the share of the variance in the three.
    """
    tokens = level.double().flatten(1).T  # [h * w, C]
    tokens = tokens - tokens.mean(dim=0)
    variances, directions = torch.linalg.eigh(tokens.T @ tokens)  # ascending
    total = variances.clamp(min=0).sum().item()
    directions = directions[:, -3:].flip(1)  # [C, <= 3]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    values = (tokens @ (directions * largest.sign())).numpy()
    low, high = np.percentile(values, TAILS, axis=0)
    width = high - low
    flat = width <= 1e-5 * max(1e-30, tokens.abs().max().item())  # float32 rounds to 1e-7
    colours = np.where(flat, 0.5, (values - low) / np.where(flat, 1.0, width)).clip(0, 1)
    colours = np.pad(colours, ((0, 0), (0, 3 - colours.shape[1])), constant_values=0.5)
    share = variances[-3:].sum().item() / total if total > 0 else 0.0
    return colours.reshape(*level.shape[1:], 3), share


def draw_features(network: ViewedBackbone, picture: np.ndarray, channels: int = 0) -> Figure:
    """A figure with a column for each level."""
    levels = levels_of(network, picture)
    say('\n'.join(_table(levels)))
    size = picture.shape[:2]
    figure, panels = grid_of_panels(3 + channels, 1 + len(levels), f'Feature maps of {network.name}', panel=(2.5, 2.3))
    show_picture(panels[0, 0], picture, f'picture, {size[0]} x {size[1]}')
    notes = [
        'white at 0',
        'principal components 1, 2, 3 of\nthe tokens as red, green, blue,\neach from its 1st to its 99th\npercentile',
        'channels that vary most\nover the map,\nwhite at 0',
    ]
    for axes, note in zip(panels[1:, 0], notes, strict=False):
        axes.text(0.5, 0.5, note, fontsize=FONT, ha='center', va='center', transform=axes.transAxes)
    for i, level in enumerate(levels):
        axes = panels[:, i + 1]
        drawn, where = (level.output, '') if level.before is None else (level.before, ' before the norm')
        rms = drawn.pow(2).mean(dim=0).sqrt().numpy()
        title = f'level {i}: {level.name}\nroot mean square{where}'
        shown = show_map(axes[0], rms, level.stride, size, title, vmin=0)
        colour_bar(figure, shown, axes[:1], '', format='%.2g')
        _signed(figure, axes[1], drawn.mean(dim=0), level.stride, size, f'mean{where}')
        colours, share = components(level.output)
        show_map(axes[2], colours, level.stride, size, f'components, {share:.0%} of the variance')
        spread = level.output.flatten(1).std(dim=1, correction=0)
        for panel, channel in zip(axes[3:], spread.topk(min(channels, len(spread))).indices.tolist(), strict=False):
            _signed(figure, panel, level.output[channel], level.stride, size, f'channel {channel}')
    return figure


def _signed(figure: Figure, axes: Axes, values: Tensor, stride: int, size: tuple[int, int], title: str) -> None:
    limit = max(values.abs().max().item(), 1e-12)
    shown = show_map(axes, values.numpy(), stride, size, title, cmap='RdBu_r', vmin=-limit, vmax=limit)
    colour_bar(figure, shown, [axes], '', format='%.2g')


def _table(levels: Sequence[Level]) -> list[str]:
    lines = [f'{"level":>5}{"stride":>8}{"size":>12}{"channels":>10}{"mean":>10}{"rms":>10}{"largest":>10}']
    for i, level in enumerate(levels):
        C, h, w = level.output.shape
        mean, rms, largest = level.output.mean(), level.output.pow(2).mean().sqrt(), level.output.abs().max()
        lines.append(f'{i:>5}{level.stride:>8}{f"{h} x {w}":>12}{C:>10}{mean:>10.3f}{rms:>10.3f}{largest:>10.3f}')
    return lines
