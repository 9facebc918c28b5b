"""The ELSA operator from operators that every exporter knows, for any size.

The dynamic filters are products of banded matrices where they are the same for all channels of a head, else one tap
after the other over a shifted view of the padded map; the static filters are a depthwise convolution. It needs the
memory of a few maps, where the reference needs kernel_size**2 of them. Autograd differentiates it, and keeps all on the
way: it is meant for recorded networks in inference.
"""

import torch.nn.functional as F
from torch import Tensor

from ..banded import FEWEST_CHANNELS, banded_sum
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
    banded: bool = True,
) -> Tensor:
    """`ops.elsa` after its checks: v [B, C, H, W], logits [B, heads * k * k, H, W], mul and add [C, k, k] or None.

    `banded` False takes tap by tap where nothing else would ask for that.
    """
    C, pad = v.shape[1], dilation * (kernel_size // 2)
    if banded and mul is None and dilation == 1 and C // num_heads >= FEWEST_CHANNELS:
        out = _by_bands(v, logits, num_heads, kernel_size, softmax)
    else:
        out = _by_taps(v, logits, mul, num_heads, kernel_size, dilation, softmax)
    if add is None:
        return out
    return out + F.conv2d(v, add.to(v.dtype).unsqueeze(1), padding=pad, dilation=dilation, groups=C)


def _by_bands(v: Tensor, logits: Tensor, num_heads: int, kernel_size: int, softmax: bool) -> Tensor:
    filters = logits.permute(0, 2, 3, 1).unflatten(3, (num_heads, -1))  # [B, H, W, heads, k * k]
    filters = filters.softmax(dim=4) if softmax else filters
    out = banded_sum(v.permute(0, 2, 3, 1).unflatten(3, (num_heads, -1)), filters, kernel_size)
    return out.flatten(3).permute(0, 3, 1, 2)


def _by_taps(
    v: Tensor, logits: Tensor, mul: Tensor | None, num_heads: int, kernel_size: int, dilation: int, softmax: bool
) -> Tensor:
    filters = logits.unflatten(1, (num_heads, 1, -1))  # [B, heads, 1, k * k, H, W]
    filters = (filters.softmax(dim=3) if softmax else filters).unbind(3)
    if mul is not None:
        factors = mul.to(v.dtype).reshape(num_heads, -1, kernel_size**2, 1, 1).unbind(2)
        filters = (attn * factor for attn, factor in zip(filters, factors, strict=True))
    return tap_sum(v.unflatten(1, (num_heads, -1)), filters, kernel_size, dilation).flatten(1, 2)
