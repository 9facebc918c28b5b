"""Class attention: a token that stands for the image gathers from all others, and they stay as they are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linear import linear
from .mlp import Mlp


class ClassAttention(nn.Module):
    """Attention of the first token alone, to all tokens and itself: [B, N, C] -> [B, 1, C].

    Source: Touvron et al., "Going deeper with Image Transformers" (arXiv 2103.17239), section 3.

    Args:
        embed_dims: C.
        num_heads: heads; each has C / num_heads channels.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv = linear(embed_dims, 2 * embed_dims, bias=False)
        self.q = linear(embed_dims, embed_dims, bias=False)
        self.proj = linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        k, v = self.kv(x).view(B, N, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, N, d]
        q = self.q(x[:, :1]).view(B, 1, self.num_heads, -1).transpose(1, 2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, 1, C))


class ClassBlock(nn.Module):
    """A transformer block for the first token, which alone changes: [B, N, C] -> [B, N, C].

    Args:
        embed_dims: C.
        num_heads: heads of the attention.
        mlp_ratio: hidden width of the perceptron over C.
    """

    def __init__(self, embed_dims: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = ClassAttention(embed_dims, num_heads)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, ratio=mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :1] + self.attn(self.norm1(x))
        first = first + self.mlp(self.norm2(first))
        return torch.cat((first, x[:, 1:]), dim=1)
