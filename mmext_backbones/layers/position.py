"""Absolute positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from .patch import PatchEmbed


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
        x = super().forward(x)
        positions = self.absolute_pos_embed
        if positions.shape[1:3] != x.shape[1:3]:
            positions = F.interpolate(positions.permute(0, 3, 1, 2), x.shape[1:3], mode='bicubic', align_corners=False)
            positions = positions.permute(0, 2, 3, 1)
        return x + positions.to(x.dtype)


def patch_embed(
    in_channels: int, embed_dims: int, patch_size: int, *, norm: bool, positions: tuple[int, int] | None
) -> PatchEmbed:
    """A patch embedding, with absolute positions where there are any."""
    if positions is None:
        return PatchEmbed(in_channels, embed_dims, patch_size, norm)
    return PositionedPatchEmbed(in_channels, embed_dims, patch_size, norm=norm, positions=positions)
