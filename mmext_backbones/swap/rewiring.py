"""Finds what takes a backbone's maps in a model, and changes what it states about them.

A model is a chain: backbone, neck (or necks), heads. Whoever comes first behind the backbone states the channels of its
maps; a neck that lets them through to the heads is found by running it, before and after, on shapes.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from ..config.editing import type_name
from ..utils.errors import first_line
from .maps import Map, backbone_maps, module_maps

__all__ = [
    'SwapRefused',
    'find_holder',
    'levels_of',
    'network_maps',
    'out_indices_for',
    'refuse_unfit',
    'rewire',
    'trim',
]

STRIDES = (4, 8, 16, 32)  # of every network here
HOLDERS = ('detector', 'student', 'architecture', 'segmentor', 'model')  # under which a model may hold another
STRIDE_KEYS = ('strides', 'featmap_strides', 'feature_strides')
CHANNEL_KEYS = ('in_channels', 'feature_channels', 'c1_in_channels')
NOT_CONSUMERS = ('backbone', 'neck', 'train_cfg', 'test_cfg', 'data_preprocessor', 'init_cfg')


class SwapRefused(ValueError):
    """The model takes no pyramid backbone; the text says why."""


# What is seen in a config, and why the swap would be no swap then. `holder` is the dict with the backbone.
BACKBONES = {
    'HourglassNet': 'its head is trained on each map of stacked hourglasses, all of stride 4, and not on a pyramid',
    'Darknet': 'YOLOv3 is defined by its Darknet, from whose width that of every later layer follows',
    'SSDVGG': 'SSD predicts on the maps of its VGG itself, which end below stride 32 in layers of its own',
}
TWO_BRANCHES = 'the network is made of branches that are trained together, with heads on each; it has no backbone'
BACKBONES |= dict.fromkeys(('BiSeNetV2', 'DDRNet', 'PIDNet', 'FastSCNN'), TWO_BRANCHES)
BACKBONES['VPD'] = 'the backbone is a diffusion model that reads the names of the classes'
NECKS = {
    'SSDNeck': 'SSD predicts on the maps of its backbone itself, whose widths its anchors and heads repeat',
    'YOLOV3Neck': 'the neck halves the widths of its backbone on the way up, so that they are its own too',
}


def find_holder(model: Mapping) -> ConfigDict:
    """The dict that holds the backbone: the model, or one that it wraps.

    Raises:
        SwapRefused: if there is none, or what is around it belongs to its old backbone.
    """
    if 'tracker' in model or 'track_head' in model or type_name(model.get('data_preprocessor')).startswith('Track'):
        raise SwapRefused(
            'it is a tracker of videos, which starts from a trained detector or segmentor and its weights. '
            'Swap the backbone of that model, train it, and name its checkpoint here'
        )
    if 'text_encoder' in model:
        raise SwapRefused(
            'it adapts a CLIP to segmentation, whose image encoder was trained together with its text encoder'
        )
    if type_name(model.get('backbone')):
        return model
    for key in HOLDERS:
        if isinstance(model.get(key), Mapping):
            return find_holder(model[key])
    raise SwapRefused(
        f'{type_name(model) or "the model"} has no backbone of a registry in its config (it has {", ".join(model)})'
    )


def refuse_unfit(holder: Mapping) -> None:
    """Raises SwapRefused for a model that is no backbone with something behind it."""
    backbone, necks = holder['backbone'], _listed(holder.get('neck'))
    name = type_name(backbone)
    if name in BACKBONES:
        raise SwapRefused(f'{name}: {BACKBONES[name]}')
    if 'backbone_cfg' in backbone:
        raise SwapRefused(f'{name}: {TWO_BRANCHES}')
    for neck in necks:
        if type_name(neck) in NECKS:
            raise SwapRefused(f'{type_name(neck)}: {NECKS[type_name(neck)]}')
        if 'rfp_backbone' in neck:
            raise SwapRefused(f"{type_name(neck)} runs a copy of the backbone that takes the neck's maps as inputs")
    for head in [holder.get('roi_head'), *_values(holder.get('roi_head'))]:
        if isinstance(head, Mapping) and head.get('shared_head') is not None:
            raise SwapRefused(
                f'its RoI head ends in the last stage of its old backbone ({type_name(head["shared_head"])} as '
                'shared_head): a C4 model. Take the FPN variant of the config'
            )


def levels_of(holder: Mapping) -> list[Map]:
    """The maps of the backbone as it stands.

    Raises:
        SwapRefused: if it cannot be built, or its maps are no pyramid that ours could stand for.
    """
    backbone = holder['backbone']
    name = type_name(backbone)
    try:
        maps = backbone_maps(backbone, _in_channels(backbone))
    except Exception as error:
        line = first_line(error)
        raise SwapRefused(f'its backbone {name} cannot be built to see its maps: {line}') from error
    strides = [stride for _, stride in maps]
    shown = f'the maps of {name} have strides {", ".join(map(str, strides))}'
    if len(maps) == 1 and strides[0] is None:
        return maps
    if None in strides:
        raise SwapRefused(
            f'{name} returns tokens beside its maps, as a plain transformer does, which ours have none of'
        )
    foreign = set(strides) - set(STRIDES)
    if foreign:
        raise SwapRefused(f'{shown}; ours have {", ".join(map(str, STRIDES))}')
    dilated = any(key in backbone for key in ('dilations', 'strides'))
    if strides != sorted(strides) or (len(set(strides)) < len(strides) and not dilated):
        raise SwapRefused(f'{shown}: no pyramid, in which each map is coarser than the one before')
    if STRIDES.index(strides[0]) + len(strides) > len(STRIDES):
        raise SwapRefused(f'{shown}, more than ours from there on')
    return maps


def out_indices_for(maps: Sequence[Map]) -> tuple[int, ...]:
    """The levels of ours that stand for `maps`: those of the same strides.

    Where dilation keeps strides down (4, 8, 8, 8), the stages count: ours go on to 16 and 32. A vector becomes
    the last.
    """
    if maps[0].stride is None:
        return (len(STRIDES) - 1,)
    strides = [stride for _, stride in maps]
    if len(set(strides)) < len(strides):
        first = STRIDES.index(strides[0])
        return tuple(range(first, first + len(strides)))
    return tuple(STRIDES.index(stride) for stride in strides)


def network_maps(config: Mapping) -> list[Map]:
    """The maps of one of our backbones."""
    with torch.device('meta'):
        backbone = MODELS.build({key: value for key, value in config.items() if key != 'init_cfg'})
    return [Map(*pair) for pair in zip(backbone.out_channels, backbone.out_strides, strict=True)]


def rewire(holder: Mapping, old: Sequence[Map], new: Sequence[Map]) -> bool:
    """Tells whatever stands behind the backbone about the maps `new` in place of `old`; the backbone is not touched.

    Returns:
        Whether every map is used: where one is not, its norm gets no gradient.

    Raises:
        SwapRefused: if nothing states the channels that change.
    """
    necks = _listed(holder.get('neck'))
    heads = {key: part for key, part in holder.items() if key not in NOT_CONSUMERS and not key.startswith('teacher')}
    links = _Links(old, new)
    if necks:
        before = module_maps(holder['neck'], old)
        links.follow(necks[0])
        if not links.found and _channels(old) != _channels(new) and before is None:
            raise SwapRefused(
                f'{type_name(necks[0])} states no in_channels equal to those of its maps, {_channels(old)}'
            )
        after = module_maps(holder['neck'], new)
        if before is not None and after is not None and _channels(before) == _channels(after):
            return links.all_used
        if before is not None and after is None:
            raise SwapRefused(f'{type_name(necks[0])} does not run on maps of {_channels(new)} channels')
        if before is None:
            return links.all_used
    behind = _Links(before, after) if necks else links
    behind.align(heads.get('decode_head'))
    for part in heads.values():
        for head in _listed(part):
            behind.follow(head)
    if not necks and isinstance(holder.get('roi_head'), Mapping):
        behind.follow_regions(holder['roi_head'])
    if not behind.found and _channels(behind.old) != _channels(behind.new):
        raise SwapRefused(f'nothing states in_channels equal to those of its maps, {_channels(behind.old)}')
    return links.all_used


class _Links:
    """The walk through the parts that take some maps.

    Attributes:
        found: whether any part stated the channels.
        used: the maps that are taken, by their place.
    """

    def __init__(self, old: Sequence[Map], new: Sequence[Map]) -> None:
        self.old, self.new = old, new
        self.found = False
        self.used: set[int] = set()

    @property
    def all_used(self) -> bool:
        return not self.found or self.used == set(range(len(self.old)))

    def follow(self, part: Any, *, top: bool = True) -> None:
        """Rewrites a part, and whatever it holds."""
        if isinstance(part, (list, tuple)):
            for item in part:
                self.follow(item, top=False)
        if not isinstance(part, Mapping):
            return
        places = part.get('in_index')
        places = list(places) if isinstance(places, (list, tuple)) else places
        for key in CHANNEL_KEYS:
            if key not in part:
                continue
            stated = part[key]
            part[key] = self._replaced(stated, 0 if key == 'c1_in_channels' else places, top)
            if part.get('num_convs') == 0 and part.get('channels') == stated:  # a head without a layer in between
                part['channels'] = part[key]
        for key in STRIDE_KEYS:
            if _equal(part.get(key), [stride for _, stride in self.old]):
                part[key] = type(part[key])(stride for _, stride in self.new)
        for key, value in part.items():
            if key not in NOT_CONSUMERS[2:]:
                self.follow(value, top=False)

    def align(self, heads: Any) -> None:
        """Heads that refine the prediction of the one before need it in the size of their own map.

        Where dilation gave several maps one size, which they no longer have, all take the map of the last head.
        """
        places = [head.get('in_index', -1) for head in _listed(heads)]
        if not all(isinstance(place, int) for place in places):
            return
        old, new = ({maps[place].stride for place in places} for maps in (self.old, self.new))
        if len(old) == 1 < len(new):
            for head in heads:
                head['in_index'], head['in_channels'] = places[-1], self.old[places[-1]].channels

    def follow_regions(self, roi_head: Mapping) -> None:
        """Without a neck, regions are cut out of the one map itself, and every head of theirs states its channels."""
        if len(self.old) > 1:
            return
        old, new = self.old[0].channels, self.new[0].channels
        for key, parts in roi_head.items():
            for part in _listed(parts):
                name = 'out_channels' if key.endswith('_roi_extractor') else 'in_channels'
                if isinstance(part, Mapping) and part.get(name) == old:
                    part[name] = new

    def _replaced(self, channels: Any, places: Any, top: bool) -> Any:
        """The channels that a part states, or those that they become if they are those of the maps it takes."""
        several = isinstance(channels, (list, tuple))
        if several:
            places = places if isinstance(places, list) else range(len(self.old))
        elif places is None and not top:
            return channels  # a width inside a head
        elif not isinstance(places, list):
            places = [-1 if places is None else places]
        number = len(self.old)
        if any(not -number <= place < number for place in places):
            return channels
        stated = list(channels) if several else [channels]
        if stated != [self.old[place].channels for place in places]:
            return channels
        self.found = True
        self.used |= {place % number for place in places}
        replaced = [self.new[place].channels for place in places]
        return type(channels)(replaced) if several else replaced[0]


def trim(holder: Mapping, out_indices: tuple[int, ...]) -> tuple[int, ...]:
    """The levels that the first neck looks at: one with `start_level` skips those before, another takes the last alone.

    The neck is told. A map nobody takes would be computed in vain, and its norm would get no gradient.
    """
    neck = next(iter(_listed(holder.get('neck'))), None)
    if neck is None or len(out_indices) < 2:
        return out_indices
    first = neck.get('start_level', 0)
    if isinstance(neck.get('in_channels'), int):
        first = len(out_indices) - 1
    elif not first or type_name(neck) in ('JPU', 'NASFCOS_FPN'):  # these read, or hand on, what they skip
        return out_indices
    elif first < len(out_indices):
        neck['start_level'] = 0
        neck['in_channels'] = type(neck['in_channels'])(neck['in_channels'][first:])
        if neck.get('end_level', -1) > 0:
            neck['end_level'] -= first
    return out_indices[first:]


def _channels(maps: Sequence[Map]) -> list[int]:
    return [channels for channels, _ in maps]


def _equal(value: Any, numbers: list) -> bool:
    return isinstance(value, (list, tuple)) and list(value) == numbers


def _in_channels(backbone: Mapping) -> int:
    value = backbone.get('in_channels', 3)
    return value if isinstance(value, int) else 3


def _listed(part: Any) -> list[Mapping]:
    if part is None:
        return []
    return list(part) if isinstance(part, (list, tuple)) else [part]


def _values(part: Any) -> Iterator[Any]:
    for value in part.values() if isinstance(part, Mapping) else ():
        yield from _listed(value) if isinstance(value, (list, tuple, Mapping)) else ()
