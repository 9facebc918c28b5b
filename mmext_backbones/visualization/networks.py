"""Builds the network and reads the picture that a subcommand looks into; records what its modules compute."""

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..backbones.base import DenseBackbone
from ..config.options import add_config_options
from ..datasets.bad_data.images import unreadable
from ..datasets.shapes.scenes import render_scene
from ..utils.console import say, silence_libraries
from ..utils.errors import UserError
from ..weights.fitting import unwrap
from ..weights.layouts import strip_prefix
from ..weights.loading import read
from ..zoo import build_network

__all__ = [
    'Call',
    'ViewedBackbone',
    'add_network_arguments',
    'block_of',
    'draw_shapes',
    'load_network',
    'read_picture',
    'record',
    'sort_files',
]

NETWORK_HELP = 'a backbone like swin_t, a config file, or a name like mmdet::path.py'
PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp', '.tif', '.tiff')
SHAPES_SIZE = 224  # pixels, edge of the picture that is drawn where none is given
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of RGB


@dataclass
class Call:
    """One call of a module: ``module(x, *context)`` gave `output`."""

    module: nn.Module
    x: Tensor
    context: tuple[Any, ...]
    output: Tensor


@torch.no_grad()
def record(backbone: nn.Module, image: Tensor, modules: Sequence[nn.Module]) -> list[Call]:
    """The calls of `modules` while the backbone runs on an image batch [B, 3, H, W], in the order of `modules`."""
    calls = {}

    def note(module: nn.Module, args: tuple, output: Tensor) -> None:
        calls[module] = Call(module, args[0], args[1:], output)

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(note).remove)
        backbone(image)
    return [calls[module] for module in modules]


def block_of(backbone: nn.Module, stage: int, block: int) -> nn.Module:
    """A block of one of our backbones; negative numbers count from the end.

    Raises:
        UserError: if there is no such block, or the backbone is another one.
    """
    if not isinstance(backbone, DenseBackbone):
        raise UserError(
            f'{type(backbone).__name__} is no backbone of this package: only of those the blocks are known. '
            '`features` and `receptive-field` take any backbone.'
        )
    depths = [len(one.blocks) for one in backbone.stages]
    if not -len(depths) <= stage < len(depths):
        raise UserError(f'--stage {stage}: expected 0 to {len(depths) - 1}, the stages that are built')
    if not -depths[stage] <= block < depths[stage]:
        raise UserError(f'--block {block}: expected 0 to {depths[stage] - 1}, the blocks of stage {stage}')
    return backbone.stages[stage].blocks[block]


def add_network_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """NETWORK [WEIGHTS] [IMAGE] and what every look into one network shares."""
    parser.add_argument('network', metavar='NETWORK', help=NETWORK_HELP)
    parser.add_argument(
        'files',
        nargs='*',
        metavar='FILE',
        help='weights (a file or an address such as timm://...) and a picture, in any order; without weights they are '
        'random, without a picture a scene of Shapes is drawn',
    )
    add_shared_arguments(parser, out)
    parser.add_argument(
        '--size',
        type=int,
        metavar='PIXELS',
        help=f'longer edge of the picture (default: as it is; {SHAPES_SIZE} drawn)',
    )


def add_shared_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """What does not depend on how many networks and pictures there are."""
    parser.add_argument('--seed', type=int, default=0, help='of random weights and drawn pictures (default: 0)')
    add_config_options(parser, 'arguments of the backbone, or entries of the config to override')
    parser.add_argument('--out', default=out, metavar='FILE', help='the picture (default: %(default)s)')


@dataclass
class ViewedBackbone:
    """A backbone in eval mode, without gradients of its weights, in float32.

    Attributes:
        name: With its weights, for titles.
        backbone: On its own or that of a whole model.
        preprocessor: The model's, for pictures; None for a backbone on its own.
    """

    name: str
    backbone: nn.Module
    preprocessor: nn.Module | None = None

    def prepare(self, picture: np.ndarray) -> Tensor:
        """What the backbone gets of an RGB picture [H, W, 3]: [1, 3, >= H, >= W], normed, and padded as by the model.

        A backbone on its own gets ImageNet's mean and deviation and no padding.
        """
        if self.preprocessor is None:
            x = (torch.from_numpy(picture).float() - torch.tensor(MEAN)) / torch.tensor(STD)
            return x.permute(2, 0, 1)[None].contiguous()
        bgr = torch.from_numpy(np.ascontiguousarray(picture[..., ::-1])).permute(2, 0, 1)
        x = self.preprocessor({'inputs': [bgr]}, False)['inputs']
        if not isinstance(x, Tensor):
            raise UserError(f'{self.name}: its {type(self.preprocessor).__name__} makes no batch of a picture')
        return x.float()


def load_network(
    name: str, weights: str | None, options: dict[str, Any] | None = None, seed: int = 0
) -> ViewedBackbone:
    """Builds a network and loads the weights of its backbone; its other parts are not looked at.

    Args:
        name: See `engine.cost_report.build_network`.
        weights: Of any layout that the backbone knows, also those of a whole model; random ones when None.
        options: Arguments of the backbone, or dotted keys of the config.
        seed: Of random weights.

    Raises:
        UserError: for a network or weights that cannot be had.
    """
    silence_libraries()
    torch.manual_seed(seed)
    model = build_network(name, options)
    backbone = getattr(model, 'backbone', model)
    if getattr(backbone, 'autocast_dtype', None) is not None:
        say(f'{name}: computed in float32, not in {backbone.autocast_dtype}')
        backbone.autocast_dtype = None
    said = 'random weights' if weights is None else os.path.join(*Path(weights).parts[-2:])
    if weights is not None:
        try:
            say(_load(backbone, weights))
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f'weights {weights!r}: {error}') from error
    backbone.eval()  # of mmdet's ResNet it returns None
    backbone.requires_grad_(False)
    short = Path(name).stem if name.endswith('.py') else name
    return ViewedBackbone(f'{short}, {said}', backbone, getattr(model, 'data_preprocessor', None))


def _load(backbone: nn.Module, weights: str) -> str:
    if isinstance(backbone, DenseBackbone):
        return str(backbone.load_pretrained(weights))
    tensors = unwrap(read(weights), weights)
    tensors = strip_prefix(tensors, 'backbone.') or tensors
    wanted = backbone.state_dict()
    wrong = [key for key, value in wanted.items() if key not in tensors or tensors[key].shape != value.shape]
    if wrong:
        raise ValueError(f'{len(wrong)} of {len(wanted)} tensors are missing or of another shape ({wrong[0]}, ...)')
    backbone.load_state_dict({key: tensors[key] for key in wanted})
    return f'weights      {weights}\nloaded       {len(wanted):4}'


def sort_files(files: Sequence[str]) -> tuple[str | None, str | None]:
    """Weights and picture among the files of a command line, told by the ends of their names.

    Raises:
        UserError: for two of a kind.
    """
    pictures = [file for file in files if file.lower().endswith(PICTURES)]
    weights = [file for file in files if file not in pictures]
    for kind, found in (('weights', weights), ('pictures', pictures)):
        if len(found) > 1:
            raise UserError(
                f'{found[0]!r} and {found[1]!r} are both taken for {kind}: expected one file of weights and one '
                f'picture ({", ".join(PICTURES)}) at most.'
            )
    return weights[0] if weights else None, pictures[0] if pictures else None


def read_picture(path: str | None, size: int | None = None, seed: int = 0) -> np.ndarray:
    """An RGB picture [H, W, 3], uint8.

    Args:
        path: Of a file; a scene of Shapes is drawn when None.
        size: Pixels of its longer edge; as it is when None.
        seed: Of the drawn scene.

    Raises:
        UserError: for a file that cannot be read, or a size that is none.
    """
    if size is not None and size < 1:
        raise UserError(f'--size {size}: expected at least 1 pixel')
    if path is None:
        return draw_shapes(seed, size or SHAPES_SIZE)
    if not Path(path).is_file():
        raise UserError(f'picture {path!r}: there is no such file.')
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        fault = unreadable(path)
        raise UserError(f'picture {path!r} {fault.detail if fault else "cannot be read"}')
    image = np.ascontiguousarray(image[..., ::-1])
    if size is None or max(image.shape[:2]) == size:
        return image
    factor = size / max(image.shape[:2])
    H, W = (max(1, round(edge * factor)) for edge in image.shape[:2])
    return cv2.resize(image, (W, H), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def draw_shapes(seed: int, size: int) -> np.ndarray:
    """A scene of Shapes, RGB [size, size, 3]."""
    return render_scene(np.random.default_rng([seed, 0]), (size, size)).image
