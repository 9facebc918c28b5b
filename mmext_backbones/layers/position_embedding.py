"""A learnt vector for every place of a map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from .patch import PatchEmbed


def add_positions(x: Tensor, table: Tensor) -> Tensor:
    """Adds a learnt map [1, h, w, C] to [B, H, W, C], resampled bicubically where it has another size."""
    size = x.shape[1:3]
    # resampled to its own size a map stays as it is: an unknown size is not asked
    if any(isinstance(edge, torch.SymInt) for edge in size) or table.shape[1:3] != size:
        table = F.interpolate(table.permute(0, 3, 1, 2), tuple(size), mode='bicubic', align_corners=False)
        table = table.permute(0, 2, 3, 1)
    return x + table.to(x.dtype)  # under autocast the map stays as narrow as it is


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
        trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return add_positions(x, self.weight)

    def extra_repr(self) -> str:
        return ', '.join(map(str, self.weight.shape[1:]))


class PositionedPatchEmbed(PatchEmbed):
    """`PatchEmbed`, and a learnt map of positions added to its tokens: -> [B, ceil(H/p), ceil(W/p), embed_dims].

    A map of another size than `positions` gets the learnt one resampled bicubically, as in Swin's dense code.

    Args:
        in_channels: channels of the image.
        embed_dims: channels of a token.
        patch_size: p, edge of a patch in pixels.
        norm: norm the tokens before the positions are added.
        positions: rows and columns of the learnt map, in tokens.
    """

    def __init__(
        self, in_channels: int, embed_dims: int, patch_size: int, *, norm: bool, positions: tuple[int, int]
    ) -> None:
        super().__init__(in_channels, embed_dims, patch_size, norm)
        self.absolute_pos_embed = nn.Parameter(trunc_normal_(torch.zeros(1, *positions, embed_dims), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return add_positions(super().forward(x), self.absolute_pos_embed)


def patch_embed(
    in_channels: int, embed_dims: int, patch_size: int, *, norm: bool, positions: tuple[int, int] | None
) -> PatchEmbed:
    """A patch embedding, with absolute positions where there are any."""
    if positions is None:
        return PatchEmbed(in_channels, embed_dims, patch_size, norm)
    return PositionedPatchEmbed(in_channels, embed_dims, patch_size, norm=norm, positions=positions)
