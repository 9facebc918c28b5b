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


# timm keeps a patch merging at the head of the stage it leads to; `features_only` models write layers_0
TIMM = (
    Rule(r'layers[._]\d+\.blocks\.\d+\.(attn\.relative_position_index|attn_mask)', None),
    Rule(r'norm\.(weight|bias)|head\..*', None),
    *(Rule(rf'layers[._]{i + 1}\.downsample\.(.*)', rf'stages.{i}.downsample.\1') for i in range(3)),
    Rule(r'layers[._](\d+)\.(blocks\..*)', r'stages.\1.\2'),
    Rule(r'(patch_embed\..*)', r'\1'),
)

# torchvision keeps stem, stages and mergings in one row
TORCHVISION = (
    Rule(r'features\.\d+\.\d+\.attn\.relative_position_index', None),
    Rule(r'norm\.(weight|bias)|head\.(weight|bias)', None),
    Rule(r'features\.0\.0\.(.*)', r'patch_embed.proj.\1'),
    Rule(r'features\.0\.2\.(.*)', r'patch_embed.norm.\1'),
    *(Rule(rf'features\.{2 * i + 2}\.(norm|reduction)\.(.*)', rf'stages.{i}.downsample.\1.\2') for i in range(3)),
    *(
        rule
        for i in range(4)
        for rule in (
            Rule(rf'features\.{2 * i + 1}\.(\d+)\.mlp\.0\.(.*)', rf'stages.{i}.blocks.\1.mlp.fc1.\2'),
            Rule(rf'features\.{2 * i + 1}\.(\d+)\.mlp\.3\.(.*)', rf'stages.{i}.blocks.\1.mlp.fc2.\2'),
            Rule(rf'features\.{2 * i + 1}\.(\d+)\.((?:norm[12]|attn)\..*)', rf'stages.{i}.blocks.\1.\2'),
        )
    ),
)


def authors_order_to_unfold(tensor: Tensor) -> Tensor:
    """Inverse of `unfold_order_to_authors`."""
    blocks = tensor.reshape(*tensor.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :]  # [..., 4, C], parities in the new order
    return blocks.transpose(-1, -2).reshape(tensor.shape)


TO_OPENMMLAB = (
    Rule(r'patch_embed\.proj\.(.*)', r'patch_embed.projection.\1'),
    Rule(r'(stages\.\d+\.downsample\.(norm|reduction)\..*)', r'\1', authors_order_to_unfold),
    Rule(r'(stages\.\d+\.blocks\.\d+\.attn\.)(.*)', r'\1w_msa.\2'),
    Rule(r'(stages\.\d+\.blocks\.\d+\.)mlp\.fc1\.(.*)', r'\1ffn.layers.0.0.\2'),
    Rule(r'(stages\.\d+\.blocks\.\d+\.)mlp\.fc2\.(.*)', r'\1ffn.layers.1.\2'),
    Rule(r'(stages\.\d+\.blocks\.\d+\.norm[12]\..*|patch_embed\.norm\..*|norm\d\..*)', r'\1'),
)
TO_TIMM = (
    Rule(r'norm\d\..*', None),  # timm's classifier has no norm for a map
    *(Rule(rf'stages\.{i}\.downsample\.(.*)', rf'layers.{i + 1}.downsample.\1') for i in range(3)),
    Rule(r'stages\.(\d+\.blocks\..*)', r'layers.\1'),
    Rule(r'(patch_embed\..*)', r'\1'),
)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the authors' classifier or dense backbone, without a prefix."""
    return convert(state_dict, AUTHORS)


def from_openmmlab(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the SwinTransformer of mmdet or mmsegmentation, without a prefix."""
    return convert(state_dict, OPENMMLAB)


def from_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From timm's SwinTransformer, without a prefix."""
    return convert(state_dict, TIMM)


def from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From torchvision's SwinTransformer (the first version, not swin_v2), without a prefix."""
    return convert(state_dict, TORCHVISION)


def to_openmmlab(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """To the SwinTransformer of mmdet, mmsegmentation and mmpretrain."""
    return convert(state_dict, TO_OPENMMLAB)


def to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """To timm's SwinTransformer without its classifier. The norms of the output maps have no place there."""
    return convert(state_dict, TO_TIMM)
