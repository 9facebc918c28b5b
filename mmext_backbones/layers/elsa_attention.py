"""The attention module of ELSA-Swin and ELSA-VOLO, and the forms of it that its paper compares."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from mmext_backbones.ops import elsa, tap_shifts

from . import fused
from .conv import FilterConv2d
from .linear import linear


class ELSAAttention(nn.Module):
    """Enhanced local self-attention on a map: [B, H, W, C] -> [B, H, W, C] for any H, W.

    The filter logits of a pixel come from the product of its query and key by a small grouped convolution; the
    softmaxed filters, with the static ghost head, aggregate the values of the neighbourhood (`ops.elsa`).

    The defaults are those of every published ELSA-Swin: the query-key product is not scaled, and the ghost head is
    additive only (lam = 0, gamma = 1). With lam = 0 and gamma = 0 there is no ghost head.

    Source: Zhou et al., "ELSA" (arXiv 2112.12786), sections 3.2 and 3.3, and appendix D.

    Args:
        embed_dims: C, the width of the values.
        num_heads: heads; each has C / num_heads channels and one filter a pixel.
        kernel_size: edge of the neighbourhood in tokens.
        group_width: channels a group of the filter convolution. The queries and keys are 2C/3 channels wide, rounded
            down to even thirds and then up to a multiple of this.
        drop_rate: dropout of the output.
        dilation: distance between neighbouring taps, in tokens.
        scale: factor of the query-key product; None for (C / num_heads) ** -0.5.
        lam: exponent of the factors `ghost_mul`, a whole number; 0 for none.
        gamma: factor of the summands `ghost_head`; 0 for none.
        qkv_bias: a bias for queries, keys and values.
        strict: the logits of equation 7 as they stand (algorithm 4: one linear layer, one fixed convolution) instead
            of the published variant with its learnt convolution.

    Raises:
        ValueError: if `embed_dims` is below 3, or `lam` is no whole number.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        kernel_size: int = 7,
        group_width: int = 8,
        drop_rate: float = 0.0,
        *,
        dilation: int = 1,
        scale: float | None = 1.0,
        lam: float = 0.0,
        gamma: float = 1.0,
        qkv_bias: bool = True,
        strict: bool = False,
    ) -> None:
        if embed_dims < 3:
            raise ValueError(f'embed_dims={embed_dims}: expected at least 3, of which two are for queries and keys')
        if lam != int(lam):
            raise ValueError(
                f'lam={lam}: expected a whole number; half of the factors begin below 0, and have no other power'
            )
        super().__init__()
        self.num_heads = num_heads
        self.backend = 'auto'  # of the operator; dev/benchmark compares them
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.scale = (embed_dims // num_heads) ** -0.5 if scale is None else scale
        self.lam, self.gamma = lam, gamma
        self.strict = strict
        self.qk_dims = math.ceil(embed_dims // 3 * 2 / group_width) * group_width
        taps, ghost = kernel_size**2 * num_heads, (embed_dims, kernel_size, kernel_size)

        # qkv and what makes the filters are pointwise convolutions in the source and keep the initialisation of those
        self.qkv = nn.Linear(embed_dims, 2 * self.qk_dims + embed_dims, bias=qkv_bias)
        if strict:
            self.filter_terms = nn.Linear(self.qk_dims, 2 * taps, bias=False)  # r^k and r^q of each tap
            self.filter_bias = nn.Parameter(trunc_normal_(torch.zeros(taps), std=0.02))  # r^b
        else:
            self.filter_conv = FilterConv2d(self.qk_dims, kernel_size, group_width, dilation)
            self.filter_act = nn.GELU()
            self.filter_proj = nn.Linear(self.qk_dims, taps)
        self.ghost_mul = nn.Parameter(torch.randn(ghost)) if lam else None
        self.ghost_head = nn.Parameter(torch.zeros(ghost)) if gamma else None
        self.proj = linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)
        if gamma:
            trunc_normal_(self.ghost_head, std=0.02)

    @fused.in_block_by(fused.attention)
    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(self.qkv(x))
        return self.proj_drop(self.proj(x))

    def attend(self, qkv: Tensor) -> Tensor:
        """The values, filtered by what the queries and keys say: [B, H, W, 2 * qk_dims + C] -> [B, H, W, C]."""
        C = qkv.shape[-1] - 2 * self.qk_dims
        q, k, v = qkv.split((self.qk_dims, self.qk_dims, C), dim=-1)
        x = elsa(
            v.permute(0, 3, 1, 2),
            self.logits(q, k).permute(0, 3, 1, 2),
            self.ghost_mul,
            self.ghost_head,
            num_heads=self.num_heads,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            lam=self.lam,
            gamma=self.gamma,
            backend=self.backend,
        )
        return x.permute(0, 2, 3, 1)

    def logits(self, q: Tensor, k: Tensor) -> Tensor:
        """The logits of the filters, [B, H, W, heads * k * k], from queries and keys [B, H, W, qk_dims]."""
        if self.scale != 1:
            q = q * self.scale
        if self.strict:
            return self.strict_logits(q * k)
        return self.filter_proj(self.filter_act(self.filters(q, k)))

    @fused.by(fused.filters)
    def filters(self, q: Tensor, k: Tensor) -> Tensor:
        """What the filters are read from: the convolution of q * k, all [B, H, W, qk_dims]."""
        return self.filter_conv((q * k).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def strict_logits(self, product: Tensor) -> Tensor:
        """s_i . r^k + s_j . r^q + r^b of every neighbour j, from s = q * k [B, H, W, qk_dims] (algorithm 4)."""
        terms = self.filter_terms(product).permute(0, 3, 1, 2)  # [B, 2 * heads * k * k, H, W], pairs of r^k and r^q
        shifts = tap_shifts(self.kernel_size, terms).repeat(self.num_heads, 1, 1, 1)
        padding = self.kernel_size // 2 * self.dilation
        bias = self.filter_bias.to(terms.dtype)
        return F.conv2d(terms, shifts, bias, padding=padding, dilation=self.dilation, groups=len(shifts)).permute(
            0, 2, 3, 1
        )
