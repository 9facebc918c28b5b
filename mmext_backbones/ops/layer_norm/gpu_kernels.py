"""The Triton kernels of the layer norm, one forward, one backward; launched from `gpu.py`. Importing needs Triton.

    n = (x - mean(x)) / sqrt(var(x) + eps),  y = n * weight + bias                mean and var over the C channels
    d_x = (w - mean(w) - n * mean(w * n)) / sqrt(var(x) + eps) + skip,  w = d_y * weight
    d_weight = sum_rows(d_y * n),  d_bias = sum_rows(d_y)

Layout: rows of C dense channels. A program owns ROWS of them at a time, each whole, in a block of a power of two: mean,
variance and both means of the backward pass come from registers, and each map is read or written once. Nothing is saved
for the backward pass but x. It writes y again where that is asked for, and adds `skip`, a gradient of x from elsewhere.

Accumulation: everything in float32; y and d_x are rounded once. No atomics: a program sums the gradients of weight and
bias over its run of rows, and PyTorch sums the programs.

Source: Ba et al., "Layer Normalization" (arXiv 1607.06450).
"""

import triton
import triton.language as tl

# numbers that are asked for at run time: one kernel for maps of every size
SIZES = ('rows', 'run', 'eps')


@triton.jit
def _block(tile, rows, C, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Where the elements of a tile of rows lie, and which are there: [ROWS, BLOCK] each."""
    row = tile * ROWS + tl.arange(0, ROWS)
    c = tl.arange(0, BLOCK)
    offsets = row.to(tl.int64)[:, None] * C + c[None, :]  # a map may hold more elements than 32 bits count
    return offsets, (row < rows)[:, None] & (c < C)[None, :]


@triton.jit
def _normed(x, offsets, inside, C, eps):
    """n of a tile, zero where nothing is, and 1 / sqrt(var + eps) of each row [ROWS, 1]."""
    value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    value = tl.where(inside, value - tl.expand_dims(tl.sum(value, axis=1) / C, 1), 0.0)
    scale = 1.0 / tl.sqrt(tl.expand_dims(tl.sum(value * value, axis=1) / C, 1) + eps)
    return tl.where(inside, value * scale, 0.0), scale


@triton.jit
def _load_params(pointer, C, BLOCK: tl.constexpr):
    """Weight or bias, [1, BLOCK] float32."""
    c = tl.arange(0, BLOCK)
    return tl.load(pointer + c, mask=c < C, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=SIZES)
def forward(x, weight, bias, y, rows, C, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`x` and `y` [rows, C]. One program for each tile."""
    offsets, inside = _block(tl.program_id(0), rows, C, ROWS, BLOCK)
    normed, _ = _normed(x, offsets, inside, C, eps)
    value = normed * _load_params(weight, C, BLOCK) + _load_params(bias, C, BLOCK)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES)
def backward(grad, x, weight, bias, skip, y, grad_x, sums, rows, run, C, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`grad`, `x`, `skip` or None, `y` or None and `grad_x` [rows, C]; `sums` [programs, 2, C] of weight and of bias.

    One program for each run of tiles.
    """
    weight = _load_params(weight, C, BLOCK)
    if y is not None:
        bias = _load_params(bias, C, BLOCK)
    sum_weight, sum_bias = tl.zeros([ROWS, BLOCK], tl.float32), tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(run):
        offsets, inside = _block(tl.program_id(0) * run + i, rows, C, ROWS, BLOCK)
        normed, scale = _normed(x, offsets, inside, C, eps)
        d_y = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
        if y is not None:
            tl.store(y + offsets, (normed * weight + bias).to(y.dtype.element_ty), mask=inside)
        sum_weight += d_y * normed
        sum_bias += d_y
        d_n = d_y * weight
        mean, slope = tl.sum(d_n, axis=1) / C, tl.sum(d_n * normed, axis=1) / C
        d_x = (d_n - tl.expand_dims(mean, 1) - normed * tl.expand_dims(slope, 1)) * scale
        if skip is not None:
            d_x += tl.load(skip + offsets, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_x + offsets, d_x.to(grad_x.dtype.element_ty), mask=inside)

    c = tl.arange(0, BLOCK)
    sums += tl.program_id(0).to(tl.int64) * 2 * C
    tl.store(sums + c, tl.sum(sum_weight, axis=0), mask=c < C)
    tl.store(sums + C + c, tl.sum(sum_bias, axis=0), mask=c < C)
