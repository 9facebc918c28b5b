"""The ELSA operator in plain PyTorch, as a loop over the taps.

    out[n, :, p] = sum_j (mul[n, :, j] * attn[n, j, p] + add[n, :, j]) * v[n, :, p + offset(j)]

Layout [N, d, H, W] with one row `n` an image and head, contiguous, so that a tap is one fused multiply-add over a
shifted view: no unfolded copy of `v`, and nothing is saved for the backward pass but the inputs. The additive part is
a depthwise convolution. On the CPU rows of the map are taken in bands, and small maps several at a time, so that the
working set of the k*k passes stays in the cache; elsewhere, where each operation is a launch, the whole map at once.
Accumulated in float32 (float64 for float64 inputs).
"""

from collections.abc import Callable, Iterator
from functools import wraps

import torch
import torch.nn.functional as F
from torch import Tensor

from ..derivatives import first_order

BAND_ELEMENTS = 2**18  # of v in one band (1 MiB in float32): within the second-level cache of one core


def _without_autocast(function: Callable) -> Callable:
    """Keep autocast from lowering the float32 sums inside: it would cast the convolution's inputs."""

    @wraps(function)
    def run(ctx, tensor, *args):
        with torch.autocast(tensor.device.type, enabled=False):
            return function(ctx, tensor, *args)

    return run


class ELSATaps(torch.autograd.Function):
    """The sum above, for v [B, C, H, W], attn [B, heads, k*k, H, W], mul and add [C, k, k] or None -> [B, C, H, W]."""

    @staticmethod
    @_without_autocast
    def forward(ctx, v, attn, mul, add, dilation):
        ctx.save_for_backward(v, attn, mul, add)
        ctx.dilation = dilation
        taps = _Taps(v, attn, mul, dilation)
        if add is None:
            out = v.new_zeros(taps.shape, dtype=taps.dtype)
        else:
            out = F.conv2d(taps.v.view(taps.image), taps.weight(add), dilation=dilation, groups=len(add)).view(
                taps.shape
            )
        for n, rows in taps.bands():
            o = out[n, :, rows]
            for a, window, m in zip(*taps.band(n, rows, taps.v), strict=True):
                o.addcmul_(a, window if m is None else window * m)
        return out.view(v.shape).to(v.dtype)

    @staticmethod
    @first_order
    @_without_autocast
    def backward(ctx, grad_out):
        v, attn, mul, add = ctx.saved_tensors
        needs_v, needs_attn, needs_mul, needs_add = ctx.needs_input_grad[:4]
        taps = _Taps(v, attn, mul, ctx.dilation)
        grad = grad_out.to(taps.dtype).contiguous().view(taps.shape)
        grad_v = None  # padded as taps.v
        if needs_v and add is None:
            grad_v = torch.zeros_like(taps.v)
        elif needs_v:
            flipped = taps.weight(add).flip(2, 3)
            pad = 2 * taps.pad
            grad_v = F.conv2d(grad.view(v.shape), flipped, padding=pad, dilation=ctx.dilation, groups=len(add))
            grad_v = grad_v.view(taps.v.shape)
        grad_attn = torch.empty_like(taps.attn) if needs_attn else None
        sums = grad.new_zeros(
            2, *taps.shape[:2], taps.attn.shape[1]
        )  # of grad * window, times attn for mul, [N, d, k*k]

        for n, rows in taps.bands():
            g = grad[n, :, rows]
            product = torch.empty_like(g, memory_format=torch.contiguous_format)
            if needs_v:  # the adjoint of a tap: scatter into the window it read
                for a, window, m in zip(*taps.band(n, rows, grad_v), strict=True):
                    window.addcmul_(a, g if m is None else torch.mul(g, m, out=product))
            if not (needs_attn or needs_mul or needs_add):
                continue
            columns = ([], [])
            for j, (a, window, m) in enumerate(zip(*taps.band(n, rows, taps.v), strict=True)):
                torch.mul(g, window, out=product)
                if needs_mul:
                    columns[0].append((product.flatten(2) @ a.flatten(2).mT).squeeze(2))
                if needs_add:
                    columns[1].append(product.sum(dim=(2, 3)))
                if needs_attn:
                    torch.sum(product if m is None else product.mul_(m), dim=1, out=grad_attn[n, j, rows])
            for total, column in zip(sums, columns, strict=True):
                if column:
                    total[n] += torch.stack(column, dim=2)

        if needs_v:
            grad_v = grad_v[..., taps.pad : taps.pad + v.shape[2], taps.pad : taps.pad + v.shape[3]].reshape(v.shape)
        sums = sums.view(2, len(v), v.shape[1], taps.kernel_size, taps.kernel_size).sum(dim=1)
        return (
            grad_v.to(v.dtype) if needs_v else None,
            grad_attn.view(attn.shape).to(attn.dtype) if needs_attn else None,
            sums[0].to(mul.dtype) if needs_mul else None,
            sums[1].to(add.dtype) if needs_add else None,
            None,
        )


class _Taps:
    """The inputs in the layout and precision of the loop, cut into bands and taps."""

    def __init__(self, v: Tensor, attn: Tensor, mul: Tensor | None, dilation: int) -> None:
        B, heads, taps, H, W = attn.shape
        self.dtype = torch.promote_types(v.dtype, torch.float32)
        self.shape = B * heads, v.shape[1] // heads, H, W  # [N, d, H, W]
        self.kernel_size, self.dilation = round(taps**0.5), dilation
        self.pad = dilation * (self.kernel_size // 2)
        self.image = B, v.shape[1], H + 2 * self.pad, W + 2 * self.pad
        self.v = v.new_zeros(*self.shape[:2], *self.image[2:], dtype=self.dtype)  # padded
        self.v.view(self.image)[:, :, self.pad : self.pad + H, self.pad : self.pad + W] = v
        self.attn = attn.to(self.dtype).reshape(B * heads, taps, H, W).contiguous()
        self.mul = None
        if mul is not None:
            mul = mul.to(self.dtype).reshape(heads, -1, taps, 1, 1)
            self.mul = mul.repeat(B, 1, 1, 1, 1)  # [N, d, k*k, 1, 1]

    def weight(self, add: Tensor) -> Tensor:
        """The additive part as the weight of a depthwise convolution."""
        return add.to(self.dtype).unsqueeze(1)

    def bands(self) -> Iterator[tuple[slice, slice]]:
        """The slices of N and of H of each band."""
        N, d, H, W = self.shape
        if self.v.device.type != 'cpu':
            yield slice(0, N), slice(0, H)
            return
        rows = min(H, max(1, BAND_ELEMENTS // (d * W)))
        together = max(1, BAND_ELEMENTS // (d * W * H))
        for n in range(0, N, together):
            for y in range(0, H, rows):
                yield slice(n, n + together), slice(y, min(y + rows, H))

    def band(self, n: slice, rows: slice, padded: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """Of each tap in a band: attn [n, 1, rows, W], the window it reads of `padded` [n, d, rows, W], mul or None."""
        W = self.shape[-1]
        region = padded[n, :, rows.start : rows.stop + 2 * self.pad]
        windows = region.unfold(2, rows.stop - rows.start, self.dilation).unfold(
            3, W, self.dilation
        )  # [n, d, k, k, rows, W]
        windows = [window for row in windows.unbind(2) for window in row.unbind(2)]
        attn = list(self.attn[n, None, :, rows].unbind(2))
        mul = [None] * len(attn) if self.mul is None else list(self.mul[n].unbind(2))
        return attn, windows, mul
