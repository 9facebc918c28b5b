"""The attention module of ELSA-Swin and ELSA-VOLO."""

import math

import torch
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from mmext_backbones.ops import elsa

from . import fused
from .conv import FilterConv2d
from .linear import linear


class ELSAAttention(nn.Module):
    """Enhanced local self-attention on a map: [B, H, W, C] -> [B, H, W, C] for any H, W.

    The filter logits of a pixel come from the product of its query and key by a small grouped convolution; the
    softmaxed filters, with the static ghost head, aggregate the values of the neighbourhood (`ops.elsa`).

    As in every published ELSA-Swin, the query-key product is not scaled, and the ghost head is additive only (lam = 0).
    With `lam` the filters are multiplied by a static factor to that power before: `ghost_head` holds both halves then.

    Source: Zhou et al., "ELSA" (arXiv 2112.12786), sections 3.2 and 3.3.

    Args:
        embed_dims: C, the width of the values.
        num_heads: heads; each has C / num_heads channels and one filter a pixel.
        kernel_size: edge of the neighbourhood in tokens.
        group_width: channels a group of the filter convolution. The queries and keys are 2C/3 channels wide, rounded
            down to even thirds and then up to a multiple of this.
        drop_rate: dropout of the output.
        lam: exponent of the multiplicative half of the ghost head; 0 for none.
        qkv_bias: whether the projection has a bias.

    Raises:
        ValueError: if `embed_dims` is below 3.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int = 7,
        group_width: int = 8,
        drop_rate: float = 0.0,
        lam: float = 0.0,
        qkv_bias: bool = True,
    ) -> None:
        if embed_dims < 3:
            raise ValueError(f'embed_dims={embed_dims}: expected at least 3, of which two are for queries and keys')
        super().__init__()
        self.num_heads = num_heads
        self.backend = 'auto'  # of the operator; dev/benchmark compares them
        self.kernel_size = kernel_size
        self.lam = lam
        self.qk_dims = math.ceil(embed_dims // 3 * 2 / group_width) * group_width

        # qkv and filter_proj are pointwise convolutions in the source and keep the initialisation of those
        self.qkv = nn.Linear(embed_dims, 2 * self.qk_dims + embed_dims, bias=qkv_bias)
        self.filter_conv = FilterConv2d(self.qk_dims, kernel_size, group_width)
        self.filter_act = nn.GELU()
        self.filter_proj = nn.Linear(self.qk_dims, kernel_size**2 * num_heads)
        halves = () if lam == 0 else (2,)  # the factors and the summands, or these alone
        self.ghost_head = nn.Parameter(torch.zeros(*halves, embed_dims, kernel_size, kernel_size))
        self.proj = linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)
        factors, summands = self.ghost_halves()
        trunc_normal_(summands, std=0.02)
        if factors is not None:
            nn.init.normal_(factors)

    @fused.in_block_by(fused.attention)
    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.qkv(x))
        return self.proj_drop(self.proj(x))

    def attend(self, qkv: Tensor) -> Tensor:
        """The values, filtered by what the queries and keys say: [B, H, W, 2 * qk_dims + C] -> [B, H, W, C]."""
        C = qkv.shape[-1] - 2 * self.qk_dims
        q, k, v = qkv.split((self.qk_dims, self.qk_dims, C), dim=-1)
        logits = self.filter_proj(self.filter_act(self.filters(q, k)))  # [B, H, W, heads * k * k]
        factors, summands = self.ghost_halves()
        x = elsa(
            v.permute(0, 3, 1, 2),
            logits.permute(0, 3, 1, 2),
            factors,
            summands,
            lam=self.lam,
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            backend=self.backend,
        )
        return x.permute(0, 2, 3, 1)

    def ghost_halves(self) -> tuple[Tensor | None, Tensor]:
        """The static factors, if there are any, and the static summands of the filters, [C, k, k] each."""
        return (None, self.ghost_head) if self.lam == 0 else self.ghost_head.unbind(0)

    @fused.by(fused.filters)
    def filters(self, q: Tensor, k: Tensor) -> Tensor:
        """What the filters are read from: the convolution of q * k, all [B, H, W, qk_dims]."""
        return self.filter_conv((q * k).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
