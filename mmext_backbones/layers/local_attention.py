"""Local self-attention with the terms, the normalisation and the region of the ELSA paper's study."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from mmext_backbones.ops import (
    banded_products,
    banded_shifts,
    elsa,
    filter_norm,
    neighbour_products,
    relative_position_index,
    shift_taps,
    shifted_window_mask,
    window_merge,
    window_partition,
)
from mmext_backbones.ops.torch_versions import is_compiling
from mmext_backbones.ops.window_attention.export import window_plan
from mmext_backbones.ops.window_attention.reference import MASKED, fill_up

from . import fused
from .linear import linear

TERMS = ('q.k', 'q.r', 'r.k', 'b')  # q_i.k_j, q_i.r^k_{j-i}, r^q_{j-i}.k_j, r^b_{j-i}
NORMALIZATIONS = ('softmax', 'filter', 'identity')
REGIONS = ('window', 'neighbourhood')


class LocalAttention(nn.Module):
    """Local self-attention on a map: [B, H, W, C] -> [B, H, W, C] for any H, W.

        out_i = sum_j Norm_j( scale q_i.k_j + q_i.r^k_{j-i} + r^q_{j-i}.k_j + r^b_{j-i} ) v_j

    with any of the four terms, in each head by itself. j runs over the window of i, filled up and shifted as Swin's
    (`WindowAttention`), or over its neighbourhood. A neighbour outside the map keeps its place under the norm, where
    its key, and behind it its value, is 0. What only a shift brought together has no weight; a filter normalisation is
    over all tokens of the window. Offsets are key minus query. Queries, keys, r^k and r^q are there only where a term
    reads them.

    Source: Zhou et al., "ELSA" (arXiv 2112.12786), equation 4. Whether its r^k and r^q are shared by the heads, and
    whether it scales q.k, it does not say: here each head has its own, and q.k alone is scaled, as Swin's.

    Args:
        embed_dims: C.
        num_heads: heads; each has d = C / num_heads channels.
        terms: of `TERMS`.
        normalization: of `NORMALIZATIONS`: softmax, filter normalisation (`ops.filter_norm`), or none.
        region: of `REGIONS`.
        size: edge of the window or, odd, of the neighbourhood, in tokens.
        shift_size: roll of the map in tokens before it is cut into windows.
        shift_single_window: shift also a map that is no larger than a window.

    Raises:
        ValueError: for an unknown term, normalisation or region, or a neighbourhood of even size.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        terms: Collection[str] = TERMS,
        *,
        normalization: str = 'softmax',
        region: str = 'window',
        size: int = 7,
        shift_size: int = 0,
        shift_single_window: bool = True,
    ) -> None:
        if not terms or set(terms) - set(TERMS):
            raise ValueError(f'terms={terms}: expected some of {", ".join(TERMS)}')
        if normalization not in NORMALIZATIONS:
            raise ValueError(f'normalization={normalization!r}: expected one of {", ".join(NORMALIZATIONS)}')
        if region not in REGIONS:
            raise ValueError(f'region={region!r}: expected one of {", ".join(REGIONS)}')
        if region == 'neighbourhood' and size % 2 == 0:
            raise ValueError(f'size={size}: expected an odd number, the edge of a neighbourhood')
        super().__init__()
        self.num_heads = num_heads
        self.backend = 'auto'  # of the ELSA operator, in a neighbourhood
        self.normalization, self.region, self.size = normalization, region, size
        self.shift_size, self.shift_single_window = shift_size, shift_single_window
        self.scaled = 'q.k' in terms
        self.has_q = bool({'q.k', 'q.r'} & set(terms))
        self.has_k = bool({'q.k', 'r.k'} & set(terms))

        d, offsets = embed_dims // num_heads, (2 * size - 1 if region == 'window' else size) ** 2
        self.scale = d**-0.5
        self.qkv = linear(embed_dims, (self.has_q + self.has_k + 1) * embed_dims)  # those that are there
        self.relative_keys = _table(num_heads, offsets, d) if 'q.r' in terms else None  # r^k
        self.relative_queries = _table(num_heads, offsets, d) if 'r.k' in terms else None  # r^q
        self.relative_position_bias_table = _table(num_heads, offsets) if 'b' in terms else None  # r^b
        self.proj = linear(embed_dims, embed_dims)

    @fused.in_block_by(fused.attention)
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.attend(self.qkv(x)))

    def attend(self, qkv: Tensor) -> Tensor:
        """The attention of every token in its region: [B, H, W, (1 to 3) * C] -> [B, H, W, C]."""
        return self.in_windows(qkv) if self.region == 'window' else self.over_neighbours(qkv)

    def in_windows(self, qkv: Tensor) -> Tensor:
        H, W = qkv.shape[1:3]
        window = (self.size, self.size)
        if is_compiling():
            return self.in_gathered_windows(qkv, window)
        shift = self.shift_size if self.shift_single_window or max(H, W) > self.size else 0
        qkv = fill_up(qkv, self.qkv.bias.to(qkv.dtype), window)
        windows, padded_size = window_partition(qkv, window, shift)  # [B, windows, N, (1 to 3) * C]
        mask = shifted_window_mask(padded_size, window, shift, qkv.device)[:, None] if shift else None
        x = self.among(windows, window, mask)
        return window_merge(x, window, padded_size, shift)[:, :H, :W].contiguous()

    def in_gathered_windows(self, qkv: Tensor, window: tuple[int, int]) -> Tensor:
        """`in_windows` without a question about the size: recorded once for all."""
        H, W = qkv.shape[1:3]
        plan = window_plan((H, W), window, self.shift_size, False, qkv.device, self.shift_single_window)
        windows = qkv.flatten(1, 2).index_select(1, plan.token)  # [B, windows * N, (1 to 3) * C]
        windows = torch.where(plan.inside.view(-1, 1), windows, self.qkv.bias.to(qkv.dtype))
        mask = None if plan.apart is None else (plan.apart * MASKED)[:, None]
        x = self.among(windows.unflatten(1, (plan.groups, -1)), window, mask)
        return x.flatten(1, 2).index_select(1, plan.place).unflatten(1, (H, W))

    def among(self, windows: Tensor, window: tuple[int, int], mask: Tensor | None) -> Tensor:
        """The attention within windows: [B, windows, N, (1 to 3) * C] -> [B, windows, N, C]."""
        q, k, v = (None if x is None else x.transpose(2, 3) for x in self.split(windows))

        index = relative_position_index(window, windows.device).T  # key minus query, [N, N]
        logits = []  # [B, windows, heads, N, N], or without B and windows where nothing depends on the image
        if self.scaled:
            logits.append(self.scale * (q @ k.mT))
        if self.relative_keys is not None:
            logits.append(torch.einsum('bwhnd,hnmd->bwhnm', q, self.relative_keys[:, index]))
        if self.relative_queries is not None:
            logits.append(torch.einsum('hnmd,bwhmd->bwhnm', self.relative_queries[:, index], k))
        if self.relative_position_bias_table is not None:
            logits.append(self.relative_position_bias_table[:, index])
        attn = self.normalize(sum(logits), mask).to(v.dtype)
        if is_compiling() and attn.dim() < v.dim():  # a product that broadcasts asks whether there is one image
            attn = attn + attn.new_zeros(*v.shape[:2], 1, 1, 1)
        return (attn @ v).transpose(2, 3).flatten(3)  # attn @ v: [B, windows, heads, N, d]

    def over_neighbours(self, qkv: Tensor) -> Tensor:
        q, k, v = self.split(qkv)
        values = v.flatten(3).permute(0, 3, 1, 2)  # [B, C, H, W]
        logits = []  # [B, H, W, heads, K], or [heads, K] where nothing depends on the image
        recorded = self.backend == 'export'
        products = banded_products if recorded else neighbour_products
        shifts = banded_shifts if recorded else shift_taps
        if self.scaled:
            logits.append(self.scale * products(q, k, self.size))
        if self.relative_keys is not None:
            logits.append(torch.einsum('bywhd,hod->bywho', q, self.relative_keys))
        if self.relative_queries is not None:
            logits.append(shifts(torch.einsum('bywhd,hod->bywho', k, self.relative_queries), self.size))
        if self.relative_position_bias_table is not None:
            logits.append(self.relative_position_bias_table)
        logits = sum(logits)
        if logits.dim() == 2:  # one filter for all pixels: a depthwise convolution
            C = values.shape[1]
            weight = self.normalize(logits).repeat_interleave(C // self.num_heads, dim=0)
            weight = weight.view(C, 1, self.size, self.size).to(values.dtype)
            x = F.conv2d(values, weight, padding=self.size // 2, groups=C)
        else:
            softmax = self.normalization == 'softmax'  # which is part of the operator
            filters = (logits if softmax else self.normalize(logits)).flatten(3).permute(0, 3, 1, 2)
            x = elsa(
                values,
                filters,
                num_heads=self.num_heads,
                kernel_size=self.size,
                gamma=0,
                softmax=softmax,
                backend=self.backend,
            )  # [B, C, H, W]
        return x.permute(0, 2, 3, 1)

    def split(self, x: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Queries, keys and values [..., heads, d], None for those that no term reads."""
        parts = list(x.unflatten(-1, (self.has_q + self.has_k + 1, self.num_heads, -1)).unbind(-3))
        v = parts.pop()
        k = parts.pop() if self.has_k else None
        return (parts.pop() if self.has_q else None), k, v

    def normalize(self, logits: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights of logits [..., K]; `mask` is 0, or far below where a pair is to have no weight."""
        if self.normalization == 'softmax':
            return (logits if mask is None else logits + mask).softmax(dim=-1)
        weights = filter_norm(logits, -1) if self.normalization == 'filter' else logits
        return weights if mask is None else weights.masked_fill(mask != 0, 0.0)

    def extra_repr(self) -> str:
        return f'{self.region} of {self.size}, {self.normalization}, num_heads={self.num_heads}'


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(trunc_normal_(torch.zeros(shape), std=0.02))
