"""Outlook attention from operators that every exporter knows, for any size: slices, products and sums, nothing in
place. Autograd differentiates it, and keeps all windows: it is meant for recorded networks in inference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .windows import beyond, gather


def outlook_export(v: Tensor, attn: Tensor, kernel_size: int, stride: int) -> Tensor:
    """`ops.outlook` after its checks: v [B, H, W, C], attn [B, h, w, heads, places, places] -> [B, H, W, C]."""
    (B, H, W, C), (_, h, w, *_) = v.shape, attn.shape
    places = (attn @ gather(v, attn, kernel_size, stride)).unbind(4)  # [B, h, w, heads, d] each
    before, more = kernel_size // 2, beyond(kernel_size, stride)
    phases = []
    for row in range(stride):
        for column in range(stride):
            terms = [
                _moved(places[a * kernel_size + b].flatten(3), a // stride, b // stride, more)
                for a in range(row, kernel_size, stride)
                for b in range(column, kernel_size, stride)
            ]
            phases.append(sum(terms[1:], terms[0]))
    blocks = torch.stack(phases, dim=3).unflatten(3, (stride, stride))  # [B, rows, columns, stride, stride, C]
    out = blocks.permute(0, 1, 3, 2, 4, 5).reshape(B, (h + more) * stride, (w + more) * stride, C)
    return out[:, before : before + H, before : before + W]


def _moved(x: Tensor, down: int, right: int, more: int) -> Tensor:
    """[B, h, w, C] with zeros around it, [B, h + more, w + more, C]."""
    return F.pad(x, (0, 0, right, more - right, down, more - down))
