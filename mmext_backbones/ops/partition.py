"""Cut a map into square windows, shifted or not, and put it together again."""

import torch
import torch.nn.functional as F
from torch import Tensor


def window_partition(x: Tensor, window_size: int, shift_size: int = 0) -> tuple[Tensor, tuple[int, int]]:
    """Zero-pad [B, H, W, C] at the right and bottom to whole windows, roll it by `shift_size` and cut it.

    Returns:
        The windows [B, number of windows, window_size**2, C], row-major inside and outside, and the padded (H, W),
        which `window_merge` needs.
    """
    B, H, W, C = x.shape
    pad_h, pad_w = -H % window_size, -W % window_size
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    if shift_size:
        x = torch.roll(x, (-shift_size, -shift_size), dims=(1, 2))
    rows, cols = (H + pad_h) // window_size, (W + pad_w) // window_size
    x = x.view(B, rows, window_size, cols, window_size, C).transpose(2, 3)  # [B, rows, cols, ws, ws, C]
    return x.reshape(B, rows * cols, window_size**2, C), (H + pad_h, W + pad_w)


def window_merge(windows: Tensor, window_size: int, padded_size: tuple[int, int], shift_size: int = 0) -> Tensor:
    """Inverse of `window_partition` up to the crop: [B, number of windows, window_size**2, C] -> [B, Hp, Wp, C]."""
    B, _, _, C = windows.shape
    H, W = padded_size
    x = windows.view(B, H // window_size, W // window_size, window_size, window_size, C).transpose(2, 3)
    x = x.reshape(B, H, W, C)
    return torch.roll(x, (shift_size, shift_size), dims=(1, 2)) if shift_size else x
