"""A learnt vector for every place of a map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionEmbedding(nn.Module):
    """Adds a learnt map: [B, H, W, C] -> [B, H, W, C].

    The map is kept at the size it is learnt at, and resampled bicubically at every call for any other.

    Args:
        embed_dims: C.
        grid_size: its edge in tokens.
    """

    def __init__(self, embed_dims: int, grid_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, grid_size, grid_size, embed_dims))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        table, size = self.weight, x.shape[1:3]
        # resampled to its own size a map stays as it is: an unknown size is not asked
        if any(isinstance(edge, torch.SymInt) for edge in size) or table.shape[1:3] != size:
            table = F.interpolate(table.permute(0, 3, 1, 2), tuple(size), mode='bicubic', align_corners=False)
            table = table.permute(0, 2, 3, 1)
        return x + table.to(x.dtype)  # under autocast the map stays as narrow as it is

    def extra_repr(self) -> str:
        return ', '.join(map(str, self.weight.shape[1:]))
