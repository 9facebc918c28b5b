"""VOLO state dicts of others -> ours."""

from collections.abc import Mapping

from torch import Tensor

from .rules import Rule, convert


def _as_grid(tensor: Tensor) -> Tensor:
    """Old files hold the positions as one row of tokens: [1, N, C] -> [1, edge, edge, C]."""
    edge = round(tensor.shape[1] ** 0.5)
    return tensor.unflatten(1, (edge, edge)) if tensor.dim() == 3 and edge**2 == tensor.shape[1] else tensor


# the class token, its blocks and both heads, which a dense backbone does without
CLASSIFIER = r'(?:head|aux_head|post_network)\..*|cls_token'
TABLE = (
    Rule(CLASSIFIER, None),
    # the classifier's norm follows the last stage, whose map is our level 2
    Rule(r'norm\.(.*)', r'norm2.\1'),
    *(Rule(rf'patch_embed\.conv\.{3 * i}\.(.*)', rf'patch_embed.conv{i + 1}.\1') for i in range(3)),
    *(Rule(rf'patch_embed\.conv\.{3 * i + 1}\.(.*)', rf'patch_embed.norm{i + 1}.\1') for i in range(3)),
    Rule(r'(patch_embed\.proj\..*)', r'\1'),
    Rule('pos_embed', 'absolute_pos_embed.weight', _as_grid),
    Rule(r'network\.0\.(\d+)\.(.*)', r'stages.0.blocks.\1.\2'),
    # the downsampling stands between the stages
    Rule(r'network\.1\.proj\.(.*)', r'stages.0.downsample.\1'),
    *(Rule(rf'network\.{i + 1}\.(\d+)\.(.*)', rf'stages.{i}.blocks.\1.\2') for i in range(1, 4)),
)


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From timm's volo_d* and the authors' own, which have the same names, without a prefix."""
    return convert(state_dict, TABLE)
