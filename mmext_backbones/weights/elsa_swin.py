"""ELSA-Swin state dicts of the authors -> ours."""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import swin
from .rules import Rule, convert


def _vqk_to_qkv(tensor: Tensor) -> Tensor:
    """Their window attention packs its projection as v, q, k along the first axis."""
    v, q, k = tensor.chunk(3)
    return torch.cat((q, k, v))


def _rb_to_table(rb: Tensor) -> Tensor:
    """Their bias table [heads, 169] is indexed key minus query; Swin's [169, heads] query minus key: mirrored."""
    return rb.flip(1).T.contiguous()


BLOCK = r'layers\.(\d+\.blocks\.\d+\.attn)\.'
WINDOW_BLOCK = r'layers\.(3\.blocks\.\d+\.attn)\.'
AUTHORS = (
    Rule(BLOCK + 'relative_id', None),
    Rule(WINDOW_BLOCK + r'pre_proj\.(weight|bias)', r'stages.\1.qkv.\2', _vqk_to_qkv),
    Rule(WINDOW_BLOCK + 'rb', r'stages.\1.relative_position_bias_table', _rb_to_table),
    # pointwise convolutions -> linear layers
    Rule(BLOCK + r'pre_proj\.weight', r'stages.\1.qkv.weight', lambda tensor: tensor.flatten(1)),
    Rule(BLOCK + r'pre_proj\.bias', r'stages.\1.qkv.bias'),
    Rule(BLOCK + r'attn\.0\.(weight|bias)', r'stages.\1.filter_conv.\2'),
    Rule(BLOCK + r'attn\.2\.weight', r'stages.\1.filter_proj.weight', lambda tensor: tensor.flatten(1)),
    Rule(BLOCK + r'attn\.2\.bias', r'stages.\1.filter_proj.bias'),
    Rule(BLOCK + 'ghost_head', r'stages.\1.ghost_head', lambda tensor: tensor.squeeze(0)),
    Rule(BLOCK + r'post_proj\.(weight|bias)', r'stages.\1.proj.\2'),
    *swin.AUTHORS,
)


def from_authors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From the authors' classifier or dense backbone, without a prefix."""
    return convert(state_dict, AUTHORS)
