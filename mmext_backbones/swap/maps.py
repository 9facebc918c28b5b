"""Finds which maps a part of a model returns, their channels and strides, by running it on shapes alone."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor

from ..config.editing import type_name

__all__ = ['Map', 'backbone_maps', 'module_maps']

SIZE = 256  # edge of the image in pixels; a multiple of every stride


class Map(NamedTuple):
    """One output: channels, and the stride in pixels of the image; None for a vector, which has no place."""

    channels: int
    stride: int | None


def backbone_maps(config: Mapping, in_channels: int = 3) -> list[Map]:
    """The maps of a backbone, on the meta device; where an operator runs on no meta device, on the CPU.

    Raises:
        Exception: whatever the backbone raises when it is built or run.
    """
    config = _without_weights(config)
    size = config.get('img_size', SIZE)  # some transformers take no other
    size = size if isinstance(size, int) else size[0]
    shape = (1, in_channels, size, size)
    for built, run in (('meta', 'meta'), ('cpu', 'meta')):  # some constructors read numbers
        try:
            return _run(config, lambda: torch.empty(shape), built, run, size)
        except Exception:
            continue
    return _run(config, lambda: torch.zeros(shape), 'cpu', 'cpu', size)


def module_maps(config: Mapping | Sequence[Mapping], maps: Sequence[Map]) -> list[Map] | None:
    """The maps of a neck behind `maps`, or None where it does not run on shapes alone."""

    def inputs() -> tuple[Tensor, ...]:
        return tuple(
            torch.empty(1, channels, *(() if stride is None else (SIZE // stride,) * 2)) for channels, stride in maps
        )

    if type_name(config) == 'GlobalAveragePooling':  # mmdet's wants maps of one size
        return [Map(channels, None) for channels, _ in maps]
    try:
        return _run(_without_weights(config), inputs, 'meta', 'meta', SIZE)
    except Exception:
        return None


def _run(config: Any, inputs: Callable[[], Any], built: str, run: str, size: int) -> list[Map]:
    """Builds on one device and runs on another."""
    with torch.device(built):
        module = ROOT_MODELS.build(config).to(run)
    module.eval()  # mmdet's Swin returns None here
    with torch.device(run), torch.no_grad():
        outs = module(inputs())
    return [_map(out, size) for out in _flat(outs)]


def _flat(outs: Any) -> list[Tensor]:
    if isinstance(outs, Tensor):
        return [outs]
    return [tensor for out in outs for tensor in _flat(out)]


def _map(out: Tensor, size: int) -> Map:
    if out.dim() == 4:
        return Map(out.shape[1], max(1, round(size / out.shape[3])))
    return Map(out.shape[-1], None)


def _without_weights(config: Any) -> Any:
    """The config without what would be fetched when it is built."""
    config = copy.deepcopy(config)
    for part in config if isinstance(config, (list, tuple)) else [config]:
        for key in ('init_cfg', 'pretrained'):
            if isinstance(part.get(key), (str, Mapping, list, tuple)):
                part[key] = None
        if part.get('pretrained') is True:  # timm's
            part['pretrained'] = False
    return config
