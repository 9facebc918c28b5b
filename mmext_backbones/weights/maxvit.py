"""MaxViT state dicts of others -> ours."""

from collections.abc import Mapping

from torch import Tensor

from .rules import Rule, convert

BLOCK = r'stages[._](\d+\.blocks\.\d+\.)'  # `features_only` models write stages_0
# the `maxvit_*_tf_*` models, whose weights are the authors'; the *_rw_* and *_rmlp_* networks are others
TIMM = (
    # of the classifier; its norm follows the pooling
    Rule(r'head\..*', None),
    Rule(r'(stem\..*)', r'\1'),
    Rule(BLOCK + r'conv\.shortcut\.expand\.(.*)', r'stages.\1shortcut.proj.\2'),
    Rule(BLOCK + r'conv\.(conv\d)_(?:1x1|kxk)\.(.*)', r'stages.\1conv.\2.\3'),
    Rule(BLOCK + r'(conv\.(?:pre_norm|norm\d|se)\..*)', r'stages.\1\2'),
    Rule(BLOCK + r'attn_block\.attn\.rel_pos\.(.*)', r'stages.\1attn_window.attn.\2'),
    Rule(BLOCK + r'attn_grid\.attn\.rel_pos\.(.*)', r'stages.\1attn_grid.attn.\2'),
    Rule(BLOCK + r'attn_block\.(.*)', r'stages.\1attn_window.\2'),
    Rule(BLOCK + r'(attn_grid\..*)', r'stages.\1\2'),
)


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From timm's `maxvit_*_tf_*`, without a prefix."""
    return convert(state_dict, TIMM)
