"""What went into a module and came out of it while a backbone ran."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..backbones.base import DenseBackbone
from ..utils.errors import UserError

__all__ = ['Call', 'block_of', 'record']


@dataclass
class Call:
    """One call of a module: ``module(x, *context, **options)`` gave `output`."""

    module: nn.Module
    x: Tensor
    context: tuple[Any, ...]
    options: dict[str, Any]
    output: Tensor


@torch.no_grad()
def record(backbone: nn.Module, image: Tensor, modules: Sequence[nn.Module]) -> list[Call]:
    """The calls of `modules` while the backbone runs on an image batch [B, 3, H, W], in the order of `modules`."""
    calls = {}

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        calls[module] = Call(module, args[0], args[1:], kwargs, output)

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_hook(note, with_kwargs=True).remove)
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
