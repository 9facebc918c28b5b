"""The pre-norm transformer block, and a stage of blocks."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from . import fused
from .drop_path import DropPath
from .mlp import Mlp


class TransformerBlock(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)), each branch under stochastic depth: [B, H, W, C] -> [B, H, W, C].

    Args:
        attn: what mixes the tokens, [B, H, W, C] -> [B, H, W, C].
        embed_dims: C.
        mlp: what works on each token, [B, H, W, C] -> [B, H, W, C]; Swin's perceptron when None.
        norm_eps: epsilon of both norms.
        drop_path_rate: stochastic depth of both branches.
    """

    def __init__(
        self,
        attn: nn.Module,
        embed_dims: int,
        *,
        mlp: nn.Module | None = None,
        norm_eps: float = 1e-5,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims, eps=norm_eps)
        self.mlp = Mlp(embed_dims) if mlp is None else mlp
        self.drop_path = DropPath(drop_path_rate)

    @fused.by(fused.transformer_block)
    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """`context` goes to `attn`: what depends on the image, and no module should remember."""
        x = x + self.drop_path(self.attn(self.norm1(x), *context))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks of one resolution, and the downsampling to the next one, which the stage's own output does not see."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
