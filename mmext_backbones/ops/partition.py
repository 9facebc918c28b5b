"""Cut a map into windows or into a grid, and put it together again.

A window holds neighbours: tokens of a contiguous rectangle. A grid group holds tokens that lie as far apart as they
can: the map is cut into window_h x window_w cells, and group (i, j) takes token (i, j) of every cell. Both cuts
zero-pad the map at the right and bottom to what divides; both merges need the padded size and leave the crop to the
caller, who knows H and W.

Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.2; Tu et al., "MaxViT" (arXiv 2204.01697),
section 3.2.
"""

import torch
from torch import Tensor

from .caching import cache_tensors
from .padding import zero_pad

Size = tuple[int, int]


def window_partition(x: Tensor, window_size: Size, shift_size: int = 0) -> tuple[Tensor, Size]:
    """Zero-pad [B, H, W, C] to whole windows, roll it by `shift_size` and cut it.

    Returns:
        The windows [B, number of windows, window_h * window_w, C], row-major inside and outside, and the padded
        (H, W), which `window_merge` needs.
    """
    B, _, _, C = x.shape
    h, w = window_size
    x = _pad(x, window_size)
    H, W = x.shape[1:3]
    if shift_size:
        x = torch.roll(x, (-shift_size, -shift_size), dims=(1, 2))
    x = x.view(B, H // h, h, W // w, w, C).transpose(2, 3)  # [B, rows, cols, h, w, C]
    return x.reshape(B, (H // h) * (W // w), h * w, C), (H, W)


def window_merge(windows: Tensor, window_size: Size, padded_size: Size, shift_size: int = 0) -> Tensor:
    """Inverse of `window_partition` up to the crop: [B, windows, window_h * window_w, C] -> [B, Hp, Wp, C]."""
    B, _, _, C = windows.shape
    (h, w), (H, W) = window_size, padded_size
    x = windows.view(B, H // h, W // w, h, w, C).transpose(2, 3).reshape(B, H, W, C)
    return torch.roll(x, (shift_size, shift_size), dims=(1, 2)) if shift_size else x


def grid_partition(x: Tensor, window_size: Size) -> tuple[Tensor, Size]:
    """Zero-pad [B, H, W, C] to whole cells and cut it into a grid of window_h x window_w cells.

    Returns:
        The groups [B, number of groups, window_h * window_w, C], row-major inside and outside, and the padded (H, W),
        which `grid_merge` needs.
    """
    B, _, _, C = x.shape
    h, w = window_size
    x = _pad(x, window_size)
    H, W = x.shape[1:3]
    x = x.view(B, h, H // h, w, W // w, C).permute(0, 2, 4, 1, 3, 5)  # [B, cell rows, cell cols, h, w, C]
    return x.reshape(B, (H // h) * (W // w), h * w, C), (H, W)


def grid_merge(groups: Tensor, window_size: Size, padded_size: Size) -> Tensor:
    """Inverse of `grid_partition` up to the crop: [B, groups, window_h * window_w, C] -> [B, Hp, Wp, C]."""
    B, _, _, C = groups.shape
    (h, w), (H, W) = window_size, padded_size
    return groups.view(B, H // h, W // w, h, w, C).permute(0, 3, 1, 4, 2, 5).reshape(B, H, W, C)


@cache_tensors(32, lambda size, window_size, *_: (size[0] + window_size[0]) * (size[1] + window_size[1]))
def padding_mask(size: Size, window_size: Size, grid: bool, device: torch.device, shift_size: int = 0) -> Tensor | None:
    """What hides the padding of a partition from the tokens of the map: 0 for a token, -inf for a padded key.

    Windows hide whole rows or columns of the last windows. In a grid the padding falls into the last cells, at the
    offsets of the last groups only, so the mask differs from group to group. Every group keeps a token of the map: the
    first cell, as every window, starts inside it. So no softmax over a group is ever empty.

    Returns:
        Float32 [groups, 1, window_h * window_w], to be added to logits [groups, queries, keys]; None where `size`
        needs no padding. Kept from call to call, see `caching`.
    """
    if size[0] % window_size[0] == 0 and size[1] % window_size[1] == 0:
        return None
    tokens = torch.ones(1, *size, 1, device=device)
    cut = grid_partition(tokens, window_size) if grid else window_partition(tokens, window_size, shift_size)
    groups = cut[0]
    return torch.zeros_like(groups).masked_fill_(groups == 0, float('-inf'))[0].transpose(1, 2)


def _pad(x: Tensor, window_size: Size) -> Tensor:
    pad_h, pad_w = -x.shape[1] % window_size[0], -x.shape[2] % window_size[1]
    return zero_pad(x, (0, 0, 0, pad_w, 0, pad_h)).contiguous()
