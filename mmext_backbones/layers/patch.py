"""Patch embedding and patch merging: the two places where a Swin-like network lowers its resolution."""

from torch import Tensor, nn

from mmext_backbones.ops.padding import zero_pad

from . import fused
from .conv import PatchConv2d
from .linear import linear


class PatchEmbed(nn.Module):
    """Cut the image into patches and embed each: [B, in_channels, H, W] -> [B, ceil(H/p), ceil(W/p), embed_dims].

    The image is zero-padded at the right and bottom to whole patches.

    Args:
        in_channels: channels of the image.
        embed_dims: channels of a token.
        patch_size: p, edge of a patch in pixels.
        norm: norm the tokens, as Swin does and Sequencer does not.
    """

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int = 4, norm: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchConv2d(in_channels, embed_dims, patch_size)
        self.norm = nn.LayerNorm(embed_dims) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[-2:]
        pad_h, pad_w = -(-H // self.patch_size) * self.patch_size - H, -(-W // self.patch_size) * self.patch_size - W
        x = zero_pad(x, (0, pad_w, 0, pad_h))
        # contiguous, or every residual sum and norm after it would work across the layout of the convolution
        return self.norm(self.proj(x).permute(0, 2, 3, 1).contiguous())


class PatchMerging(nn.Module):
    """Join 2 x 2 neighbouring tokens: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 2 * C].

    The four C-wide blocks are concatenated in the authors' order of (row, column) parity: (0, 0), (1, 0), (0, 1),
    (1, 1). (OpenMMLab's modules order the channels otherwise: their weights need a permutation.) A map of odd size is
    zero-padded at the right or bottom, before the norm.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * embed_dims)
        self.reduction = linear(4 * embed_dims, 2 * embed_dims, bias=False)

    @fused.by(fused.patch_merging)
    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(self.join(x)))

    def join(self, x: Tensor) -> Tensor:
        """The 2 x 2 neighbours as one token: [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4 * C]."""
        B, H, W, C = x.shape
        h, w = -(-H // 2), -(-W // 2)
        x = zero_pad(x, (0, 0, 0, 2 * w - W, 0, 2 * h - H))
        return x.reshape(B, h, 2, w, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(B, h, w, 4 * C)
