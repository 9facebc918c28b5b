"""Convolution and its gradients, without the oneDNN kernels that compute them wrongly."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .torch_versions import get_autocast_dtype, is_autocast_enabled

aten = torch.ops.aten


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """torch's conv2d: x [B, in_channels, H, W], weight [out_channels, in_channels / groups, h, w].

    On the CPU some convolutions are computed in float32 and rounded to bfloat16 once, see `_wrong_in_bfloat16`.
    """
    if _wrong_in_bfloat16(x, weight, stride, padding):
        with torch.autocast('cpu', enabled=False):
            bias = None if bias is None else bias.float()
            return F.conv2d(x.float(), weight.float(), bias, stride, padding, groups=groups).bfloat16()
    return F.conv2d(x, weight, bias, stride, padding, groups=groups)


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    groups: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `conv2d` for x and for the weight, each None unless `needs` asks for it."""
    dtype = x.dtype
    if _wrong_in_bfloat16(x, weight, stride, padding):
        grad, x, weight = grad.float(), x.float(), weight.float()
    geometry = (stride, padding, (1, 1), False, (0, 0), groups)
    grads = aten.convolution_backward(grad, x, weight, None, *geometry, (*needs, False))[:2]
    return tuple(None if one is None else one.to(dtype) for one in grads)


def _wrong_in_bfloat16(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Whether oneDNN's bfloat16 kernels read memory that nobody wrote, or mix up patches; seen with torch 2.13 and AMX.

    The first where a stride leaves a single column; the second for patches (stride = kernel) of few channels that are
    wide enough for a tile, say 4 x 4 of 16 channels or 8 x 8 of 8.
    """
    if x.device.type != 'cpu' or stride[1] == 1:
        return False
    if (get_autocast_dtype('cpu') if is_autocast_enabled('cpu') else x.dtype) is not torch.bfloat16:
        return False
    channels, _, width = weight.shape[1:]
    patches = width == stride[1] and channels < 32 and channels * width >= 64
    return patches or x.shape[3] + 2 * padding[1] < width + stride[1]
