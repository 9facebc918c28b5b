"""The window attention module of Swin; the last stage of ELSA-Swin uses it too."""

import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from mmext_backbones.ops import relative_position_index, window_attention

from . import fused
from .linear import linear


class WindowAttention(nn.Module):
    """(Shifted-)window multi-head self-attention on a map: [B, H, W, C] -> [B, H, W, C] for any H, W.

    As in the authors' detection code, which zero-pads the map to whole windows before the projection, the padding takes
    part in the attention: its keys and values are the projection's bias. Here it is never projected, the operator puts
    it in. A shifted layer there shifts at every size, also where the map is one window; in their classifiers it does
    not.

    Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.2.

    Args:
        embed_dims: C.
        num_heads: heads; each has C / num_heads channels.
        window_size: edge of a window in tokens.
        shift_size: roll of the map in tokens before it is cut; 0 for the plain layer.
        attn_drop_rate: dropout of attention weights.
        drop_rate: dropout of the output.
        shift_single_window: shift also a map that is no larger than a window.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        shift_single_window: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = 'auto'  # of the operator; dev/benchmark compares them
        self.window_size = window_size
        self.shift_size = shift_size
        self.shift_single_window = shift_single_window
        self.scale = (embed_dims // num_heads) ** -0.5
        self.attn_drop_rate = attn_drop_rate

        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        self.qkv = linear(embed_dims, 3 * embed_dims)
        self.proj = linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    @fused.in_block_by(fused.attention)
    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.qkv(x))
        return self.proj_drop(self.proj(x))

    def attend(self, qkv: Tensor) -> Tensor:
        """The attention of every token in its window: [B, H, W, 3 * C] -> [B, H, W, C]."""
        return window_attention(
            qkv,
            self.bias(),
            num_heads=self.num_heads,
            window_size=(self.window_size, self.window_size),
            scale=self.scale,
            shift_size=self.shift_size,
            shift_single_window=self.shift_single_window,
            padding=self.qkv.bias,
            dropout=self.attn_drop_rate if self.training else 0.0,
            backend=self.backend,
        )

    def bias(self) -> Tensor:
        """The bias of every token pair, [num_heads, N, N], looked up afresh.

        Not cached: mmengine's EMA swaps parameters through `.data`, which no version counter shows, and a stale bias
        would be a silent error; the look-up is 2401 rows against thousands of windows.
        """
        table = self.relative_position_bias_table
        return table[relative_position_index((self.window_size, self.window_size), table.device)].permute(2, 0, 1)
