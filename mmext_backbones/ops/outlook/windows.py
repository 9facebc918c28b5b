"""Outlook attention over windows that are gathered from views of the padded map.

The padded map [B, Hp, Wp, C] is read as [B, rows, stride, columns, stride, C]. The place (a, b) of all windows is then
one slice of it: rows from a // stride on, at a % stride, and columns alike. So unfolding is a copy of kernel_size**2
slices, folding a sum over as many, and neither needs the transposes of PyTorch's own, which put channels first.

Layout: windows [B, h, w, heads, places, d], so that a window and head is one product of places x places with
places x d. For the backward pass the values and the weights are kept, and the windows gathered again.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..derivatives import first_order


class OutlookWindows(torch.autograd.Function):
    """v [B, H, W, C], attn [B, h, w, heads, places, places] -> [B, H, W, C]."""

    @staticmethod
    def forward(ctx, v, attn, kernel_size, stride):
        ctx.save_for_backward(v, attn)
        ctx.geometry = kernel_size, stride
        with torch.autocast(v.device.type, enabled=False):
            return scatter(attn @ gather(v, attn, kernel_size, stride), v.shape, kernel_size, stride)

    @staticmethod
    @first_order
    def backward(ctx, grad):
        v, attn = ctx.saved_tensors
        grad_windows = gather(grad, attn, *ctx.geometry)  # the adjoint of scatter
        grad_v = grad_attn = None
        if ctx.needs_input_grad[1]:
            grad_attn = grad_windows @ gather(v, attn, *ctx.geometry).mT
        if ctx.needs_input_grad[0]:
            grad_v = scatter(attn.mT @ grad_windows, v.shape, *ctx.geometry)
        return grad_v, grad_attn, None, None


def slices(h: int, w: int, kernel_size: int, stride: int) -> Iterator[tuple]:
    """Of every place, where it lies in the padded map [B, rows, stride, columns, stride, C]."""
    for a in range(kernel_size):
        for b in range(kernel_size):
            rows, columns = (slice(at // stride, at // stride + n) for at, n in ((a, h), (b, w)))
            yield slice(None), rows, a % stride, columns, b % stride


def beyond(kernel_size: int, stride: int) -> int:
    """Blocks of `stride` pixels that the windows need beyond one for each of them."""
    return (kernel_size - 1) // stride


def gather(v: Tensor, attn: Tensor, kernel_size: int, stride: int) -> Tensor:
    """The values of every window, zeros outside the map: [B, H, W, C] -> [B, h, w, heads, places, d]."""
    (_, H, W, _), (_, h, w, heads, *_) = v.shape, attn.shape
    before, more = kernel_size // 2, beyond(kernel_size, stride)
    after = ((n + more) * stride - size - before for n, size in ((w, W), (h, H)))
    right, bottom = after
    padded = F.pad(v, (0, 0, before, right, before, bottom))
    blocks = padded.unflatten(1, (h + more, stride)).unflatten(3, (w + more, stride)).unflatten(5, (heads, -1))
    return torch.stack([blocks[place] for place in slices(h, w, kernel_size, stride)], dim=4)


def scatter(windows: Tensor, size: torch.Size, kernel_size: int, stride: int) -> Tensor:
    """The sum at every pixel of what the windows have there: [B, h, w, heads, places, d] -> [B, H, W, C] = size."""
    B, h, w, heads, _, d = windows.shape
    _, H, W, C = size
    before, more = kernel_size // 2, beyond(kernel_size, stride)
    out = windows.new_zeros(B, h + more, stride, w + more, stride, heads, d)
    for window, place in zip(windows.unbind(4), slices(h, w, kernel_size, stride), strict=True):
        out[place] += window
    out = out.view(B, (h + more) * stride, (w + more) * stride, C)
    return out[:, before : before + H, before : before + W].contiguous()
