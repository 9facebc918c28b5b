"""The window and grid attention module of MaxViT."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext_backbones.ops import relative_position_index, window_attention
from mmext_backbones.ops.caching import cache_tensors

from . import fused
from .linear import linear


class PartitionAttention(nn.Module):
    """Multi-head self-attention inside windows or inside grid groups: [B, H, W, C] -> [B, H, W, C] for any H, W.

    Where the partition does not divide the map, its last windows or cells reach beyond it. Nobody attends to what is
    there: every token attends to exactly the tokens of the map in its group.

    The relative position bias is key minus query, the opposite of Swin's. It belongs to places in the group, so one
    table serves every resolution: a step is one token in a window, and a cell, 1 / window_size of the map, in a grid.

    Source: Tu et al., "MaxViT" (arXiv 2204.01697), sections 3.1 and 3.2, and the authors' code.

    Args:
        embed_dims: C.
        num_heads: heads; each has C / num_heads channels.
        window_size: edge of the bias table's window, in tokens.
        grid: attend inside grid groups instead of windows.
    """

    def __init__(self, embed_dims: int, num_heads: int, window_size: int = 7, grid: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = 'auto'  # of the operator; dev/benchmark compares them
        self.grid = grid
        self.scale = (embed_dims // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_heads, *[2 * window_size - 1] * 2))
        self.qkv = linear(embed_dims, 3 * embed_dims)
        self.proj = linear(embed_dims, embed_dims)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    @fused.in_block_by(fused.attention)
    def forward(self, x: Tensor, window_size: tuple[int, int]) -> Tensor:
        """`window_size` in tokens; the bias table is resampled bilinearly where it was made for another one."""
        x = self.attend(self.qkv(x), window_size)
        return self.proj(x)

    def attend(self, qkv: Tensor, window_size: tuple[int, int]) -> Tensor:
        """The attention of every token in its group: [B, H, W, 3 * C] -> [B, H, W, C]."""
        return window_attention(
            qkv,
            self.bias(window_size),
            num_heads=self.num_heads,
            window_size=window_size,
            scale=self.scale,
            grid=self.grid,
            backend=self.backend,
        )

    def bias(self, window_size: tuple[int, int]) -> Tensor:
        """The bias of every token pair, query by key, [num_heads, N, N]."""
        table = self.relative_position_bias_table
        size = (2 * window_size[0] - 1, 2 * window_size[1] - 1)
        # resampled to its own size a table stays as it is: an unknown size is not asked
        if any(isinstance(edge, torch.SymInt) for edge in size) or table.shape[1:] != size:
            table = F.interpolate(table[None], size, mode='bilinear', align_corners=False)[0]
        return table.flatten(1)[:, _key_minus_query(window_size, table.device)]

    def extra_repr(self) -> str:
        return f'{"grid" if self.grid else "window"}, num_heads={self.num_heads}'


@cache_tensors(16, lambda window_size, device: math.prod(window_size) ** 2)
def _key_minus_query(window_size: tuple[int, int], device: torch.device) -> Tensor:
    return relative_position_index(window_size, device).T.contiguous()
