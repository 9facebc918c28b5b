"""The ELSA operator as its formula stands, over an unfolded map: kernel_size**2 times the memory."""

import torch.nn.functional as F
from torch import Tensor


def elsa_reference(
    v: Tensor,
    logits: Tensor,
    mul: Tensor | None,
    add: Tensor | None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    softmax: bool = True,
) -> Tensor:
    """The formula as it stands, for reading and as the oracle of the tests; shapes as in `elsa`, no checks.

    `mul` and `add` [C, k, k] are `M` and `S` of the formula; None stands for ones and zeros.
    """
    B, C, H, W = v.shape
    taps = kernel_size**2
    neighbours = F.unfold(v, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2))
    neighbours = neighbours.reshape(B, num_heads, C // num_heads, taps, H, W)
    filters = logits.reshape(B, num_heads, 1, taps, H, W)
    if softmax:
        filters = filters.softmax(dim=3)
    if mul is not None:
        filters = filters * mul.reshape(num_heads, -1, taps, 1, 1)
    if add is not None:
        filters = filters + add.reshape(num_heads, -1, taps, 1, 1)
    return (filters * neighbours).sum(dim=3).reshape(B, C, H, W)
