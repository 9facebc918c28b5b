"""CARAFE, content-aware upsampling (arXiv 1905.02188), as `mmcv._ext` has it; mmcv has it for CUDA alone.

Every pixel of the larger map is a weighted sum of the k x k pixels about the one it lies in, by weights of its own:
out[c, y, x] = sum over i, j of mask[g(c), i, j, y, x] * map[c, y // s + i - k // 2, x // s + j - k // 2],
with zeros outside the map, where g(c) is the group of channel c. The semantics are those of mmcv 2.1.0's kernel
(`csrc/common/cuda/carafe_naive_cuda_kernel.cuh`). The loop runs over the k x k taps, so that the neighbours of all
pixels are never copied. Half types are computed in float32 and rounded once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from .precision import widened

__all__ = ['carafe_backward', 'carafe_forward', 'carafe_naive_backward', 'carafe_naive_forward']


def _taps(kernel_size: int, H: int, W: int) -> Iterator[tuple[slice, slice]]:
    """Of each tap, where the pixels that it reads stand in the padded map."""
    for i in range(kernel_size):
        for j in range(kernel_size):
            yield slice(i, i + H), slice(j, j + W)


def _split(x: Tensor, groups: int, scale: int) -> Tensor:
    """[B, groups * n, sH, sW] as [B, groups, n, H, s, W, s]."""
    B, C, H, W = x.shape
    return x.view(B, groups, C // groups, H // scale, scale, W // scale, scale)


@torch.no_grad()
def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """CARAFE.

    Args:
        features: [B, C, H, W].
        masks: [B, group_size * kernel_size ** 2, sH, sW].
        output: [B, C, sH, sW]; written.
        kernel_size: k, odd.
        group_size: number of groups of channels.
        scale_factor: s.
    """
    B, C, H, W = features.shape
    maps = pad(widened(features), [kernel_size // 2] * 4).unflatten(1, (group_size, -1))
    weights = _split(widened(masks).contiguous(), group_size, scale_factor)
    out = maps.new_zeros(B, group_size, C // group_size, H, scale_factor, W, scale_factor)
    for tap, (rows, columns) in enumerate(_taps(kernel_size, H, W)):
        out.addcmul_(maps[..., rows, None, columns, None], weights[:, :, tap, None])
    output.copy_(out.view(output.shape))


@torch.no_grad()
def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """The gradients, added to `bottom_grad` (of the features) and `mask_grad`; see `carafe_naive_forward`."""
    H, W = features.shape[2:]
    border = kernel_size // 2
    maps = pad(widened(features), [border] * 4).unflatten(1, (group_size, -1))
    weights = _split(widened(masks).contiguous(), group_size, scale_factor)
    grad = _split(widened(top_grad).contiguous(), group_size, scale_factor)
    of_maps, of_weights = torch.zeros_like(maps), torch.empty_like(weights)
    for tap, (rows, columns) in enumerate(_taps(kernel_size, H, W)):
        of_maps[..., rows, columns] += (grad * weights[:, :, tap, None]).sum((4, 6))
        of_weights[:, :, tap] = (grad * maps[..., rows, None, columns, None]).sum(2)
    bottom_grad += of_maps[..., border : border + H, border : border + W].reshape(features.shape).to(bottom_grad)
    mask_grad += of_weights.view(masks.shape).to(mask_grad)


@torch.no_grad()
def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As `carafe_naive_forward`; `rfeatures`, which mmcv hands to the backward, gets the features."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


@torch.no_grad()
def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As `carafe_naive_backward`, of the features in `rfeatures`; the other buffers are not used."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)
