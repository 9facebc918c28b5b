"""Recognises the layout of a state dict by its keys, for every layout that a backbone accepts.

Nothing here depends on a file's name or on what a user says. A layout is a marker, a key that it always has and no
other layout has, and the conversion of all its keys to ours.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from . import elsa_swin, maxvit, sequencer, swin

__all__ = ['FAMILIES', 'OWN', 'Layout', 'family_of', 'find_layout', 'strip_prefix']

OWN = 'mmext_backbones'


class Layout(NamedTuple):
    """One way to name the tensors of a family.

    Attributes:
        name: Who writes such files.
        marker: A regular expression; a state dict has this layout where it matches one of the keys in full.
        convert: State dict of this layout, without a prefix, to ours; None for our own.
    """

    name: str
    marker: str
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None

    def to_ours(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this layout, without a prefix, by our names."""
        return dict(state_dict) if self.convert is None else self.convert(state_dict)


# family (the class name of the backbone) -> layouts; of those that match, the first counts
FAMILIES: Mapping[str, tuple[Layout, ...]] = {
    'SwinTransformer': (
        Layout('OpenMMLab', r'stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight', swin.from_openmmlab),
        Layout('timm', r'layers[._]3\.downsample\.reduction\.weight', swin.from_timm),
        Layout('torchvision', r'features\.1\.0\.attn\.relative_position_bias_table', swin.from_torchvision),
        Layout('the authors of Swin', r'layers\.0\.blocks\.0\.attn\.qkv\.weight', swin.from_authors),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn\.relative_position_bias_table', None),
    ),
    'ELSASwin': (
        Layout('the authors of ELSA', r'layers\.0\.blocks\.0\.attn\.ghost_head', elsa_swin.from_authors),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn\.ghost_head', None),
    ),
    'MaxViT': (
        Layout('timm', r'stages[._]0\.blocks\.0\.attn_block\.attn\.qkv\.weight', maxvit.from_timm),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn_window\.attn\.qkv\.weight', None),
    ),
    'Sequencer2D': (
        Layout('timm', r'stages\.0\.blocks\.0\.rnn_tokens\.rnn_v\.weight_ih_l0', sequencer.from_timm),
        Layout('the authors of Sequencer', r'blocks\.0\.0\.rnn_tokens\.rnn_v\.weight_ih_l0', sequencer.from_authors),
        Layout(OWN, r'stages\.0\.blocks\.0\.attn\.rnn_v\.weight_ih_l0', None),
    ),
}
# where a file holds several networks of one family (an average beside the trained one), the first of these counts
PREFIXES = ('', 'module.', 'backbone.', 'module.backbone.')


def family_of(cls: type) -> str | None:
    """The family of a backbone class, or of the one it derives from."""
    return next((base.__name__ for base in cls.__mro__ if base.__name__ in FAMILIES), None)


def strip_prefix(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose keys begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}


def find_layout(keys: Iterable[str], family: str | None) -> tuple[Layout, str] | None:
    """The layout of a state dict and the prefix under which the backbone stands in it; None for a stranger.

    A backbone of no known family (one that somebody added) knows its own layout alone, without a prefix.

    Raises:
        ValueError: if several networks of the family stand in it, and none of them under a usual prefix.
    """
    if family is None:
        return Layout(OWN, '', None), ''
    keys = list(keys)
    for layout in FAMILIES[family]:
        marker = re.compile(rf'(|.*\.){layout.marker}')
        found = {match.group(1) for match in map(marker.fullmatch, keys) if match}
        if found:
            usual = [prefix for prefix in PREFIXES if prefix in found]
            if not usual and len(found) > 1:
                raise ValueError(
                    f'several networks stand in it, under {", ".join(sorted(found))}: name one by `prefix`'
                )
            return layout, (usual or list(found))[0]
    return None
