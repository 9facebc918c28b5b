"""Zeros around a map, and their removal, at sizes that compilers and exporters need not know.

Python asks whether there is padding at all, and saves a copy. In a recorded network the question would be a condition
on the size: another graph for each answer, in place of one for every size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def zero_pad(x: Tensor, pads: Sequence[int]) -> Tensor:
    """F.pad(x, pads) with zeros; `x` itself where nothing is to be padded.

    Args:
        x: the map.
        pads: elements before and after, axis by axis from the last one, none negative.
    """
    return F.pad(x, tuple(pads)) if torch.compiler.is_compiling() or any(pads) else x


def crop(x: Tensor, H: int, W: int) -> Tensor:
    """The first H rows and W columns of [B, >= H, >= W, C], a view of it.

    In a recorded network they are gathered, since of a view it would be asked whether it is dense.
    """
    if not torch.compiler.is_compiling():
        return x[:, :H, :W]
    rows, columns = (torch.arange(size, device=x.device) for size in (H, W))
    return x.index_select(1, rows).index_select(2, columns)
