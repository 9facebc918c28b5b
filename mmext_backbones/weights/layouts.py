"""Recognises the layout of a state dict by its keys, for every layout that a backbone accepts.

Nothing here depends on a file's name or on what a user says. A layout is a marker, a key that it always has and no
other layout has, and the conversion of all its keys to ours.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from . import elsa_swin, maxvit, sequencer, swin, volo
from .containers import AVERAGE
from .rules import UnknownKeys

__all__ = ['FAMILIES', 'OWN', 'Layout', 'family_of', 'find_layout', 'find_places', 'network_at', 'strip_prefix']

OWN = 'mmext_backbones'


class Layout(NamedTuple):
    """One way to name the tensors of a family.

    Attributes:
        name: Who writes such files.
        marker: A regular expression; a state dict has this layout where it matches one of the keys in full.
        convert: State dict of this layout, without a prefix, to ours; None for our own.
        never: A regular expression of keys that it never has, where the marker alone does not tell it from another.
    """

    name: str
    marker: str
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None
    never: str | None = None

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """A state dict of this layout, without a prefix, by our names; and the keys that the layout does not have.

        Raises:
            ValueError: for two keys that stand for one of ours.
        """
        if self.convert is None:
            return dict(state_dict), []
        try:
            return self.convert(state_dict), []
        except UnknownKeys as error:
            unknown = set(error.keys)
            return self.convert({key: state_dict[key] for key in state_dict if key not in unknown}), error.keys


OWN_ELSA = r'stages\.0\.blocks\.0\.attn\.ghost_head'
CONV_STEM = r'patch_embed\.conv1\.weight'  # VOLO's
SWIN_BLOCK = r'layers[._]0\.blocks\.0\.attn\.qkv\.weight'
# family (the class name of the backbone) -> layouts; of those that match, the first counts
FAMILIES: Mapping[str, tuple[Layout, ...]] = {
    'SwinTransformer': (
        Layout('OpenMMLab', r'stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight', swin.from_openmmlab),
        # a merging stands at the head of the stage it leads to, so never in the first, and no map has a norm
        Layout('timm', SWIN_BLOCK, swin.from_timm, never=r'layers\.0\.downsample\..*|norm\d\..*'),
        Layout('torchvision', r'features\.1\.0\.attn\.relative_position_bias_table', swin.from_torchvision),
        Layout('the authors of Swin', SWIN_BLOCK, swin.from_authors),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn\.relative_position_bias_table', None),
    ),
    'ELSASwin': (
        Layout('the authors of ELSA', r'layers\.0\.blocks\.0\.attn\.ghost_head', elsa_swin.from_authors),
        Layout(OWN, OWN_ELSA, None, never=CONV_STEM),
    ),
    'MaxViT': (
        Layout('timm', r'stages[._]0\.blocks\.0\.attn_block\.attn\.qkv\.weight', maxvit.from_timm),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn_window\.attn\.qkv\.weight', None),
    ),
    'Sequencer2D': (
        Layout('timm', r'stages\.0\.blocks\.0\.rnn_tokens\.rnn_[vh]\.weight_ih_l0', sequencer.from_timm),
        Layout('the authors of Sequencer', r'blocks\.0\.0\.rnn_tokens\.rnn_[vh]\.weight_ih_l0', sequencer.from_authors),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn\.rnn_[vh]\.weight_ih_l0', None),
    ),
    'VOLO': (
        Layout('timm and the authors of VOLO', r'network\.0\.0\.attn\.attn\.weight', volo.from_timm),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn\.attn\.weight', None),
    ),
    'ELSAVOLO': (Layout(OWN, OWN_ELSA, None, never=r'patch_embed\.norm\.weight'),),
}
# where a file holds several networks of one family, those come first, and averages last
PREFIXES = ('', 'module.', 'backbone.', 'module.backbone.')


def family_of(cls: type) -> str | None:
    """The family of a backbone class, or of the one it derives from."""
    return next((base.__name__ for base in cls.__mro__ if base.__name__ in FAMILIES), None)


def strip_prefix(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose keys begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def network_at(state_dict: Mapping[str, Any], at: str, others: Iterable[str]) -> dict[str, Any]:
    """The entries of the network under the prefix `at`, without it, nor those of other networks inside it."""
    inside = tuple(other for other in others if other != at and other.startswith(at))
    return {
        key[len(at) :]: value
        for key, value in state_dict.items()
        if key.startswith(at) and not (inside and key.startswith(inside))
    }


def find_layout(keys: Iterable[str], family: str | None) -> tuple[Layout, str] | None:
    """The layout of a state dict and the prefix under which the backbone stands in it; None for a stranger.

    Of several networks of the family it is the first of `find_places`.
    """
    places = find_places(keys, family)
    return places[0] if places else None


def find_places(keys: Iterable[str], family: str | None) -> list[tuple[Layout, str]]:
    """Where networks of a family stand in a state dict: layouts and prefixes.

    Networks without a prefix, or under a usual one, come first, and averages and teachers last. A backbone of no known
    family (one that somebody added) knows its own layout alone, without a prefix.
    """
    if family is None:
        return [(Layout(OWN, '', None), '')]
    keys = list(keys)
    few = list(filter(_at_end('|'.join(f'(?:{layout.marker})' for layout in FAMILIES[family])), keys))
    found: dict[str, Layout] = {}
    for layout in FAMILIES[family] if few else ():
        prefixes = _prefixes(few, layout.marker)
        never = _prefixes(keys, layout.never) if prefixes and layout.never else ()
        for prefix in prefixes:
            if prefix not in never:
                found.setdefault(prefix, layout)
    rank = {prefix: i for i, prefix in enumerate(PREFIXES)}
    order = sorted(found, key=lambda prefix: (rank.get(prefix, len(rank)), bool(AVERAGE.search(prefix))))
    return [(found[prefix], prefix) for prefix in order]


def _prefixes(keys: Iterable[str], pattern: str) -> dict[str, None]:
    """What stands before the pattern in the keys that end in it, each once and in order."""
    return {key[: match.start()]: None for key in keys if (match := _at_end(pattern)(key))}


@functools.lru_cache
def _at_end(pattern: str) -> Callable[[str], re.Match | None]:
    return re.compile(rf'(?:^|(?<=\.))(?:{pattern})\Z').search
