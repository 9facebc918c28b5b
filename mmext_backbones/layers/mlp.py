"""The two-layer perceptron of a transformer block."""

from torch import Tensor, nn

from . import fused
from .linear import linear


class Mlp(nn.Module):
    """Linear, GELU, Linear on the last axis: [..., C] -> [..., C].

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

    @fused.in_block_by(fused.mlp)
    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(x)))
        return self.drop(self.fc2(x))
