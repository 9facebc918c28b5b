"""What a backbone does, seen in one forward.

The network runs once on the meta device, where a tensor is a shape. Hooks tell which module runs when, and on what; a
dispatch mode tells of the operators, which are no modules, and from which stage each tensor comes. Nothing is typed in:
a block that is built otherwise is described otherwise.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from mmext_backbones.backbones import DenseBackbone
from mmext_backbones.layers import DropPath, PooledShortcut

from .wording import said_of_module, said_of_operator

__all__ = ['Architecture', 'Kind', 'Level', 'Output', 'trace']

Shape = tuple[int, int, int]  # of a map: channels, height, width


@dataclass(frozen=True)
class Kind:
    """Blocks that do the same, but for their widths and heads.

    Attributes:
        name: 'A', 'B' and so on, in the order in which they come.
        stage: that of the last block of this kind, whose steps follow.
        branches: the steps of each of its residual branches.
        shortcuts: what stands beside each branch; '' where that is the map itself.
    """

    name: str
    stage: int
    branches: tuple[tuple[str, ...], ...]
    shortcuts: tuple[str, ...]


@dataclass(frozen=True)
class Level:
    """A stage: its map, its blocks by the names of their kinds, and the steps that lead to the next stage."""

    shape: Shape
    stride: int
    blocks: str
    downsample: tuple[str, ...]


@dataclass(frozen=True)
class Output:
    """An output map, the stage that it comes from, and the steps between."""

    index: int
    shape: Shape
    stride: int
    stage: int
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """A backbone on an image of `size` pixels."""

    cls: str
    size: tuple[int, int]
    in_channels: int
    stem: tuple[str, ...]
    stages: tuple[Level, ...]
    kinds: tuple[Kind, ...]
    outputs: tuple[Output, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it in plain types, as JSON takes them."""
        return asdict(self)


def trace(backbone: DenseBackbone, size: Sequence[int]) -> Architecture:
    """Runs a backbone once on an image without numbers.

    Args:
        backbone: Any of ours, on the meta device.
        size: (H, W) of the image in pixels; multiples of every stride, or the strides could not be read from the maps.

    Raises:
        ValueError: for a size that some stride does not divide.
        RuntimeError: if the backbone is not on the meta device.
    """
    if not all(parameter.is_meta for parameter in backbone.parameters()):
        raise RuntimeError("the backbone is not on the meta device: build it under torch.device('meta')")
    if min(size) < 1 or any(edge % stride for edge in size for stride in backbone.out_strides):
        raise ValueError(f'size={tuple(size)}: expected multiples of {backbone.out_strides[-1]}, the coarsest stride')
    was_training = backbone.training
    recorder = _Recorder(backbone.eval())
    try:
        with torch.inference_mode(), recorder:
            outs = backbone(torch.empty(1, backbone.in_channels, *size, device='meta'))
    finally:
        recorder.remove()
        backbone.train(was_training)
    return _arrange(backbone, tuple(size), recorder, outs)


# --------------------------------------------------------------------------------------------------------------------
# Watching


@dataclass
class _Call:
    """Of a module by its name, or of an operator in the module of that name."""

    name: str
    module: nn.Module | None
    text: str


class _Recorder(TorchDispatchMode):
    """Keeps the calls that `wording` has words for, those of DropPath, and what the stages return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.maps: dict[int, Shape] = {}
        self.stage_of = WeakTensorKeyDictionary()
        self.running: list[str] = []
        self.told = dict(_told(model))
        self.hooks = []
        for name, module in model.named_modules():
            self.hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self.running.append(name)))
            self.hooks.append(module.register_forward_hook(lambda m, _, out, name=name: self.leave(name, m, out)))

    def leave(self, name: str, module: nn.Module, out: Any) -> None:
        self.running.pop()
        if name in self.told:
            self.calls.append(_Call(name, module, said_of_module(module) or ''))
        if block := re.fullmatch(r'stages\.(\d+)\.blocks\.\d+', name):
            stage = int(block.group(1))
            self.stage_of[out] = stage
            self.maps[stage] = (out.shape[3], out.shape[1], out.shape[2])

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inside = self.running[-1] if self.running else ''
        text = None if inside in self.told else said_of_operator(func._schema.name, args)
        if text:
            self.calls.append(_Call(inside, None, text))
        came = [self.stage_of.get(leaf, -1) for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.stage_of.setdefault(leaf, max(came, default=-1))
        return out


def _told(module: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules that there are words for, and the ends of the branches."""
    for name, child in module.named_children():
        if said_of_module(child) is not None or isinstance(child, DropPath):
            yield prefix + name, child
        else:
            yield from _told(child, f'{prefix}{name}.')


# --------------------------------------------------------------------------------------------------------------------
# Arranging


def _arrange(
    backbone: DenseBackbone, size: tuple[int, int], recorder: _Recorder, outs: Sequence[Tensor]
) -> Architecture:
    calls = recorder.calls
    blocks: dict[tuple[int, int], list[_Call]] = {}
    downsample: dict[int, list[str]] = {}
    stem, output, waiting = [], {}, []
    for call in calls:
        first, *path = call.name.split('.')
        if first == 'stages' and path[1] == 'blocks':
            blocks.setdefault((int(path[0]), int(path[2])), []).append(call)
        elif first == 'stages':
            downsample.setdefault(int(path[0]), []).append(call.text)
        elif not blocks:
            stem.append(call.text)
        elif call.module is not None and call.module in backbone.stem_modules():  # positions, between two stages
            downsample.setdefault(max(place[0] for place in blocks), []).append(call.text)
        else:
            waiting.append(call.text)
            if norm := re.fullmatch(r'norm(\d+)', first):
                output[int(norm.group(1))], waiting = waiting, []
    kinds, names = _kinds(blocks)
    stages = []
    for i, shape in sorted(recorder.maps.items()):
        of_stage = ''.join(names[key] for key in sorted(blocks) if key[0] == i)
        stages.append(Level(shape, _stride(size, shape), of_stage, _without_empty(downsample.get(i, []))))
    outputs = []
    for i, out in zip(backbone.out_indices, outs, strict=True):
        shape = tuple(out.shape[1:])
        outputs.append(
            Output(i, shape, _stride(size, shape), recorder.stage_of[out], _without_empty(output.get(i, [])))
        )
    return Architecture(
        type(backbone).__name__,
        size,
        backbone.in_channels,
        _without_empty(stem),
        tuple(stages),
        tuple(kinds),
        tuple(outputs),
    )


def _kinds(blocks: dict[tuple[int, int], list[_Call]]) -> tuple[list[Kind], dict[tuple[int, int], str]]:
    """The kinds of the blocks, and the name of that of each block."""
    kinds: dict[Any, Kind] = {}
    names = {}
    for place in sorted(blocks):
        branches, shortcuts, steps, shortcut = [], [], [], ''
        for call in blocks[place]:
            if isinstance(call.module, DropPath):
                branches.append(tuple(steps))
                shortcuts.append(shortcut)
                steps, shortcut = [], ''
            elif isinstance(call.module, PooledShortcut):
                shortcut = call.text
            elif call.text:
                steps.append(call.text)
        # the numbers but those of a shape or a shift: widths and heads differ from stage to stage
        key = re.sub(r'\d+ heads|\d+ wide|\d+( → \d+)+|(?<=depthwise, )\d+', '#', repr(branches))
        name = kinds[key].name if key in kinds else ascii_uppercase[len(kinds)]
        kinds[key] = Kind(name, place[0], tuple(branches), tuple(shortcuts))
        names[place] = name
    return list(kinds.values()), names


def _stride(size: tuple[int, int], shape: Sequence[int]) -> int:
    """How many pixels of the image a token of the map covers."""
    strides = {edge / tokens for edge, tokens in zip(size, shape[1:], strict=True)}
    if len(strides) != 1 or not (stride := strides.pop()).is_integer():
        raise ValueError(
            f'size={size}: a map of {shape[1]} x {shape[2]} has no whole stride; try multiples of its stride'
        )
    return int(stride)


def _without_empty(steps: Sequence[str]) -> tuple[str, ...]:
    return tuple(step for step in steps if step)
