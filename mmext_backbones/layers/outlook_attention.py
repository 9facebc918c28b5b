"""The attention module of VOLO's outlookers."""

from torch import Tensor, nn

from mmext_backbones.ops import outlook
from mmext_backbones.ops.padding import mean_pool

from . import fused
from .linear import linear


class OutlookAttention(nn.Module):
    """Outlook attention on a map: [B, H, W, C] -> [B, H, W, C] for any H, W.

    The mean of stride x stride pixels gives, by one linear layer, all weights between the places of the window around
    them; there is no product of queries and keys. How the windows join is said in `ops.outlook`.

    Source: Yuan et al., "VOLO" (arXiv 2106.13112), section 3.1.

    Args:
        embed_dims: C.
        num_heads: heads; each has C / num_heads channels.
        kernel_size: edge of a window in tokens.
        stride: tokens between windows.
        v_bias: whether the projection of the values has a bias; no published network has one.
    """

    def __init__(
        self, embed_dims: int, num_heads: int, kernel_size: int = 3, stride: int = 2, v_bias: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.backend = 'auto'  # of the operator
        self.kernel_size = kernel_size
        self.stride = stride
        self.scale = (embed_dims // num_heads) ** -0.5
        self.v = linear(embed_dims, embed_dims, bias=v_bias)
        self.attn = linear(embed_dims, kernel_size**4 * num_heads)
        self.proj = linear(embed_dims, embed_dims)

    @fused.in_block_by(fused.outlook)
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(x))

    def attend(self, x: Tensor) -> Tensor:
        """What the windows give to every token, before the projection: [B, H, W, C] -> [B, H, W, C]."""
        return outlook(
            self.v(x),
            self.attn(self.centres(x)),
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            stride=self.stride,
            scale=self.scale,
            backend=self.backend,
        )

    def centres(self, x: Tensor) -> Tensor:
        """What the weights of the windows are read from: [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), C]."""
        return mean_pool(x.permute(0, 3, 1, 2), self.stride).permute(0, 2, 3, 1)
