"""The pre-norm transformer block, and a stage of them."""

from collections.abc import Sequence

from torch import Tensor, nn

from .drop_path import DropPath
from .mlp import Mlp


class TransformerBlock(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)), each branch under stochastic depth: [B, H, W, C] -> [B, H, W, C].

    Args:
        attn: the attention module, [B, H, W, C] -> [B, H, W, C].
        embed_dims: C.
        drop_rate: dropout inside the MLP.
        drop_path_rate: stochastic depth of both branches.
    """

    def __init__(self, attn: nn.Module, embed_dims: int, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims)
        self.attn = attn
        self.norm2 = nn.LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, drop_rate=drop_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks of one resolution, and the downsampling to the next one, which the stage's own output does not see."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
