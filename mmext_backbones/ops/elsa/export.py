"""The ELSA operator from operators that every exporter knows, for any size.

One tap after the other reads a shifted view of the padded map; the static filters are a depthwise convolution. It needs
the memory of a few maps, where the reference needs kernel_size**2 of them. Autograd differentiates it, and keeps every
tap: it is meant for recorded networks in inference.
"""

import torch.nn.functional as F
from torch import Tensor


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
    factors = [None] * taps if mul is None else mul.to(v.dtype).reshape(num_heads, -1, taps, 1, 1).unbind(2)
    padded = F.pad(v, (pad,) * 4)
    out = None if add is None else F.conv2d(padded, add.to(v.dtype).unsqueeze(1), dilation=dilation, groups=C)
    padded, out = (None if x is None else x.unflatten(1, (num_heads, -1)) for x in (padded, out))
    for j, (attn, factor) in enumerate(zip(filters, factors, strict=True)):
        y, x = (place * dilation for place in divmod(j, kernel_size))
        term = attn * padded[..., y : y + H, x : x + W]  # [B, heads, C / heads, H, W]
        term = term if factor is None else term * factor
        out = term if out is None else out + term
    return out.flatten(1, 2)
