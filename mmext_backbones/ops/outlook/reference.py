"""Outlook attention as its authors write it, with PyTorch's unfold and fold: derivatives of every order."""

import torch.nn.functional as F
from torch import Tensor


def outlook_reference(v: Tensor, attn: Tensor, kernel_size: int, stride: int) -> Tensor:
    """`ops.outlook` after its checks: v [B, H, W, C], attn [B, h, w, heads, places, places] -> [B, H, W, C]."""
    (B, H, W, C), (_, h, w, heads, places, _) = v.shape, attn.shape
    geometry = {'kernel_size': kernel_size, 'padding': kernel_size // 2, 'stride': stride}
    windows = F.unfold(v.permute(0, 3, 1, 2), **geometry)  # [B, C * places, h * w], channels head-major
    windows = windows.view(B, heads, C // heads, places, h * w).permute(0, 4, 1, 3, 2)  # [B, h * w, heads, places, d]
    gathered = attn.flatten(1, 2) @ windows
    gathered = gathered.permute(0, 2, 4, 3, 1).reshape(B, C * places, h * w)
    return F.fold(gathered, (H, W), **geometry).permute(0, 2, 3, 1)
