"""Attention of every token to every other, with a ghost head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from mmext_backbones.ops import relative_position_index

from . import fused
from .linear import linear


class GhostAttention(nn.Module):
    """Multi-head self-attention over a whole map: [B, H, W, C] -> [B, H, W, C] for any H, W.

    The ghost head makes two maps of each: new head f has the weights A[f mod num_heads] * M[f] + S[f], and the values
    are split into twice as many heads, half as wide. M and S are indexed by the offset of key and query.

    Source: Zhou et al., "ELSA" (arXiv 2112.12786), appendix C. How it indexes M and S it does not say: by pairs they
    would have more numbers than its network gained. At another size than `size` they are resampled bilinearly.

    Args:
        embed_dims: C.
        num_heads: heads of queries and keys; each has C / num_heads channels.
        size: H and W that M and S are made for, in tokens.
    """

    def __init__(self, embed_dims: int, num_heads: int, *, size: tuple[int, int] = (14, 14)) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (embed_dims // num_heads) ** -0.5
        self.qkv = linear(embed_dims, 3 * embed_dims)
        shape = (2 * num_heads, *(2 * edge - 1 for edge in size))
        self.ghost_mul = nn.Parameter(torch.randn(shape))
        self.ghost_head = nn.Parameter(trunc_normal_(torch.zeros(shape), std=0.02))
        self.proj = linear(embed_dims, embed_dims)

    @fused.in_block_by(fused.attention)
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(self.qkv(x)))

    def attend(self, qkv: Tensor) -> Tensor:
        """[B, H, W, 3 * C] -> [B, H, W, C]."""
        size = qkv.shape[1:3]
        q, k, v = qkv.flatten(1, 2).chunk(3, dim=-1)  # [B, N, C]
        q, k = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k))  # [B, heads, N, d]
        weights = (self.scale * (q @ k.mT)).softmax(dim=-1)  # [B, heads, N, N]
        weights = weights.repeat(1, 2, 1, 1) * self.by_pair(self.ghost_mul, size)
        weights = weights + self.by_pair(self.ghost_head, size)
        v = v.unflatten(-1, (weights.shape[1], -1)).transpose(1, 2)
        x = weights.to(v.dtype) @ v  # [B, 2 * heads, N, C / that]
        return x.transpose(1, 2).flatten(2).unflatten(1, size)

    @staticmethod
    def by_pair(table: Tensor, size: tuple[int, int]) -> Tensor:
        """A table by offset, [heads, 2h - 1, 2w - 1], for each query and key: [heads, N, N]."""
        offsets = (2 * size[0] - 1, 2 * size[1] - 1)
        # resampled to its own size a table stays as it is: an unknown size is not asked
        if any(isinstance(edge, torch.SymInt) for edge in size) or table.shape[1:] != offsets:
            table = F.interpolate(table[None], offsets, mode='bilinear', align_corners=False)[0]
        return table.flatten(1)[:, relative_position_index(tuple(size), table.device).T]  # key minus query
