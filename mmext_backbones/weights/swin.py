"""Swin state dicts of others -> ours."""

from collections.abc import Mapping

from torch import Tensor

from .rules import Rule, convert

AUTHORS = (
    # derived from the window size, and rebuilt by ours
    Rule(r'layers\.\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)', None),
    # of the classifier
    Rule(r'norm\.(weight|bias)|head\.(weight|bias)', None),
    Rule(r'layers\.(\d+\..*)', r'stages.\1'),
    Rule(r'(patch_embed\..*|norm\d\..*)', r'\1'),
)


def unfold_order_to_authors(tensor: Tensor) -> Tensor:
    """Reorder the 4C inputs of a patch merging, the last axis of `tensor`.

    OpenMMLab cuts the 2 x 2 neighbourhood with unfold: channel-major, parities (0, 0), (0, 1), (1, 0), (1, 1). The
    authors concatenate C-wide blocks of the parities (0, 0), (1, 0), (0, 1), (1, 1). Shapes agree, so nothing but the
    numbers would show a forgotten permutation.
    """
    blocks = tensor.reshape(*tensor.shape[:-1], -1, 4)[..., [0, 2, 1, 3]]  # [..., C, 4], parities in the new order
    return blocks.transpose(-1, -2).reshape(tensor.shape)


OPENMMLAB = (
    Rule(r'stages\.\d+\.blocks\.\d+\.attn\.w_msa\.relative_position_index', None),
    Rule(r'patch_embed\.projection\.(.*)', r'patch_embed.proj.\1'),
    Rule(r'(stages\.\d+\.downsample\.(norm|reduction)\..*)', r'\1', unfold_order_to_authors),
    Rule(r'(stages\.\d+\.blocks\.\d+\.attn\.)w_msa\.(.*)', r'\1\2'),
    Rule(r'(stages\.\d+\.blocks\.\d+\.)ffn\.layers\.0\.0\.(.*)', r'\1mlp.fc1.\2'),
    Rule(r'(stages\.\d+\.blocks\.\d+\.)ffn\.layers\.1\.(.*)', r'\1mlp.fc2.\2'),
    Rule(r'(stages\.\d+\.blocks\.\d+\.norm[12]\..*|patch_embed\.norm\..*|norm\d\..*)', r'\1'),
)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the authors' classifier or dense backbone, without a prefix."""
    return convert(state_dict, AUTHORS)


def from_openmmlab(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the SwinTransformer of mmdet or mmsegmentation, without a prefix."""
    return convert(state_dict, OPENMMLAB)
