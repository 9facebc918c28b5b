"""The ELSA operator from operators that every exporter knows, for any size.

One tap after the other reads a shifted view of the padded map; the static filters are a depthwise convolution. It needs
the memory of a few maps, where the reference needs kernel_size**2 of them. Autograd differentiates it, and keeps every
tap: it is meant for recorded networks in inference.
"""

import torch.nn.functional as F
from torch import Tensor

from ..local_filters import tap_sum


def elsa_export(
    v: Tensor,
    logits: Tensor,
    mul: Tensor | None,
    add: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    softmax: bool = True,
) -> Tensor:
    """`ops.elsa` after its checks: v [B, C, H, W], logits [B, heads * k * k, H, W], mul and add [C, k, k] or None."""
    (B, C, H, W), taps, pad = v.shape, kernel_size**2, dilation * (kernel_size // 2)
    filters = logits.reshape(B, num_heads, 1, taps, H, W)
    filters = (filters.softmax(dim=3) if softmax else filters).unbind(3)
    if mul is not None:
        factors = mul.to(v.dtype).reshape(num_heads, -1, taps, 1, 1).unbind(2)
        filters = (attn * factor for attn, factor in zip(filters, factors, strict=True))
    out = tap_sum(v.unflatten(1, (num_heads, -1)), filters, kernel_size, dilation).flatten(1, 2)
    if add is None:
        return out
    return out + F.conv2d(v, add.to(v.dtype).unsqueeze(1), padding=pad, dilation=dilation, groups=C)
