"""The two-layer perceptron of a transformer block."""

from torch import Tensor, nn

from mmext_backbones.ops.mlp import norm_mlp

from .functional import can_fuse
from .linear import linear


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis of a norm: [..., C] -> [..., C].

    In training neither the norm's output nor the GELU's is kept, but computed again (`ops.mlp`).

    Args:
        embed_dims: C.
        ratio: hidden width over C.
        gelu: 'none' for the exact GELU, 'tanh' for its approximation, as in torch.
        drop_rate: dropout after each linear layer.
    """

    def __init__(self, embed_dims: int, ratio: float = 4.0, gelu: str = 'none', drop_rate: float = 0.0) -> None:
        super().__init__()
        hidden = int(embed_dims * ratio)
        self.fc1 = linear(embed_dims, hidden)
        self.act = nn.GELU(gelu)
        self.fc2 = linear(hidden, embed_dims)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, norm: nn.LayerNorm, residual: bool = False) -> Tensor:
        """The perceptron of norm(x), or x plus that."""
        fc1, fc2 = self.fc1, self.fc2
        if not can_fuse(norm, *self.children()):
            y = self.drop(fc2(self.drop(self.act(fc1(norm(x))))))
            return x + y if residual else y
        return norm_mlp(
            x,
            norm.weight,
            norm.bias,
            fc1.weight,
            fc1.bias,
            fc2.weight,
            fc2.bias,
            eps=norm.eps,
            approximate=self.act.approximate,
            residual=residual,
        )
