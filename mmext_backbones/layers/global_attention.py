"""The attention module of VOLO's transformer blocks."""

from torch import Tensor, nn

from mmext_backbones.ops import global_attention, window_attention

from . import fused
from .linear import linear


class GlobalAttention(nn.Module):
    """Multi-head self-attention over a whole map, without a position bias: [B, H, W, C] -> [B, H, W, C].

    With `window_size` it stays inside windows, for maps so large that the square of their tokens counts; where the
    windows reach beyond the map, nobody attends to what is there.

    Source: Yuan et al., "VOLO" (arXiv 2106.13112), section 3.2; windows as in Li et al., "Exploring Plain Vision
    Transformer Backbones for Object Detection" (arXiv 2203.16527).

    Args:
        embed_dims: C.
        num_heads: heads; each has C / num_heads channels.
        window_size: edge of a window in tokens; None for the whole map.
        qkv_bias: whether queries, keys and values have a bias.
    """

    def __init__(self, embed_dims: int, num_heads: int, window_size: int | None = None, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = 'auto'  # of the operator
        self.window_size = window_size
        self.scale = (embed_dims // num_heads) ** -0.5
        self.qkv = linear(embed_dims, 3 * embed_dims, bias=qkv_bias)
        self.proj = linear(embed_dims, embed_dims)

    @fused.in_block_by(fused.attention)
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(self.qkv(x)))

    def attend(self, qkv: Tensor) -> Tensor:
        """The attention of every token: [B, H, W, 3 * C] -> [B, H, W, C]."""
        if self.window_size is None:
            return global_attention(qkv, num_heads=self.num_heads, scale=self.scale, backend=self.backend)
        return window_attention(
            qkv,
            None,
            num_heads=self.num_heads,
            window_size=(self.window_size, self.window_size),
            scale=self.scale,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        return f'num_heads={self.num_heads}, window_size={self.window_size}'
