"""Zeros around a map, and their removal, at sizes that compilers and exporters need not know.

Python asks whether there is padding at all, and saves a copy. In a recorded network the question would be a condition
on the size: another graph for each answer, in place of one for every size.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_versions import is_compiling


def zero_pad(x: Tensor, pads: Sequence[int]) -> Tensor:
    """F.pad(x, pads) with zeros; `x` itself where nothing is to be padded.

    Args:
        x: the map.
        pads: elements before and after, axis by axis from the last one, none negative.
    """
    return F.pad(x, tuple(pads)) if is_compiling() or any(pads) else x


def crop(x: Tensor, H: int, W: int) -> Tensor:
    """The first H rows and W columns of [B, >= H, >= W, C], a view of it.

    In a recorded network they are gathered, since of a view it would be asked whether it is dense.
    """
    if not is_compiling():
        return x[:, :H, :W]
    rows, columns = (torch.arange(size, device=x.device) for size in (H, W))
    return x.index_select(1, rows).index_select(2, columns)


def mean_pool(x: Tensor, stride: int) -> Tensor:
    """Means of stride x stride pixels, at the edge of those that exist: [B, C, H, W] -> [B, C, ceil(H/s), ceil(W/s)].

    A recorded network pads with zeros and divides by the share of pixels that exist: PyTorch's own rule for the edge is
    a condition on the size. The numbers are the same.
    """
    if not is_compiling():
        return F.avg_pool2d(x, stride, ceil_mode=True, count_include_pad=False)
    H, W = x.shape[2:]
    bottom, right = (((size - 1) // stride + 1) * stride - size for size in (H, W))
    mean, share = (F.avg_pool2d(zero_pad(y, (0, right, 0, bottom)), stride) for y in (x, x.new_ones(1, 1, H, W)))
    return mean / share
