"""Sequencer2D state dicts of others -> ours."""

from collections.abc import Mapping

from torch import Tensor

from .resize import resize_patch_kernel
from .rules import Rule, convert

STEM = 'patch_embed.proj.weight'
BLOCK = r'stages\.(\d+)\.blocks\.(\d+)\.'


def from_timm(state_dict: Mapping[str, Tensor], patch_size: int, last_norm: str | None = None) -> dict[str, Tensor]:
    """From timm's sequencer2d_*, without a prefix.

    Args:
        state_dict: timm's tensors.
        patch_size: edge of our patches; the kernel of the stem is resampled where it is not the published 7.
        last_norm: the norm that takes over the classifier's, e.g. 'norm2'; None drops it.
    """
    rules = (
        Rule(r'head\..*', None),
        Rule(r'norm\.(.*)', None if last_norm is None else rf'{last_norm}.\1'),
        Rule(r'stem\.(proj\..*)', r'patch_embed.\1'),
        # timm's convolution before a stage is ours after the one before it
        *(Rule(rf'stages\.{i + 1}\.downsample\.down\.(.*)', rf'stages.{i}.downsample.\1') for i in range(3)),
        Rule(BLOCK + r'rnn_tokens\.fc\.(.*)', r'stages.\1.blocks.\2.attn.proj.\3'),
        Rule(BLOCK + r'rnn_tokens\.(.*)', r'stages.\1.blocks.\2.attn.\3'),
        Rule(BLOCK + r'mlp_channels\.(.*)', r'stages.\1.blocks.\2.mlp.\3'),
        Rule(BLOCK + r'(norm\d\..*)', r'stages.\1.blocks.\2.\3'),
    )
    converted = convert(state_dict, rules)
    if STEM in converted:
        converted[STEM] = resize_patch_kernel(converted[STEM], patch_size)
    return converted
