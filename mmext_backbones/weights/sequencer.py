"""Sequencer2D state dicts of others -> ours."""

import re
from collections.abc import Mapping

from torch import Tensor

from .rules import Rule, convert

BLOCK = r'stages\.(\d+)\.blocks\.(\d+)\.'
TIMM = (
    Rule(r'head\..*', None),
    # the classifier's norm follows the last stage, whose map is our level 2
    Rule(r'norm\.(.*)', r'norm2.\1'),
    Rule(r'stem\.(proj\..*)', r'patch_embed.\1'),
    # timm's convolution before a stage is ours after the one before it
    *(Rule(rf'stages\.{i + 1}\.downsample\.down\.(.*)', rf'stages.{i}.downsample.\1') for i in range(3)),
    Rule(BLOCK + r'rnn_tokens\.fc\.(.*)', r'stages.\1.blocks.\2.attn.proj.\3'),
    Rule(BLOCK + r'rnn_tokens\.(.*)', r'stages.\1.blocks.\2.attn.\3'),
    Rule(BLOCK + r'mlp_channels\.(.*)', r'stages.\1.blocks.\2.mlp.\3'),
    Rule(BLOCK + r'(norm\d\..*)', r'stages.\1.blocks.\2.\3'),
)


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From timm's sequencer2d_*, without a prefix. The stem keeps its kernel of 7 x 7."""
    return convert(state_dict, TIMM)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the authors' sequencer2d_*, without a prefix: timm's names but for the blocks and the downsampling.

    Their convolution after a stage is the last entry of the stage's list.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        down = re.fullmatch(r'blocks\.(\d+)\.\d+\.(down\..*)', key)
        if down:
            key = f'stages.{int(down.group(1)) + 1}.downsample.{down.group(2)}'
        renamed[re.sub(r'^blocks\.(\d+)\.(\d+)\.', r'stages.\1.blocks.\2.', key)] = tensor
    return from_timm(renamed)
