"""The Triton kernel of GELU's gradient; launched from `gpu.py`. Importing needs Triton.

    y = x * s(x),  d_x = d_y * (s(x) + x * s'(x)),  sum = sum_rows(d_x)

    exact     s(x) = (1 + erf(x / sqrt(2))) / 2            s'(x) = exp(-x^2 / 2) / sqrt(2 pi)
    by tanh   s(x) = sigmoid(2 u)                          s'(x) = 2 u' s (1 - s)
              u = sqrt(2 / pi) (x + 0.044715 x^3), for which (1 + tanh(u)) / 2 = sigmoid(2 u)

Layout: rows of dense channels; a program takes a run of tiles of ROWS rows and BLOCK channels. y is written where it is
asked for, d_x in the place of d_y, and the sum over the rows, which is the gradient of a bias, on the way.

Accumulation: everything in float32, y and d_x are rounded once. No atomics: PyTorch sums the programs.

Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (arXiv 1606.08415).
"""

import triton
import triton.language as tl

# numbers that are asked for at run time: one kernel for maps of every size
SIZES = ('rows', 'run')


@triton.jit(do_not_specialize=SIZES)
def backward(grad, x, y, sums, rows, run, C, TANH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """`grad`, which becomes d_x, `x`, and `y` or None [rows, C]; `sums` [runs, C].

    Programs (blocks of channels, runs).
    """
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for i in range(run):
        row = (tl.program_id(1) * run + i) * ROWS + tl.arange(0, ROWS)
        offsets = row.to(tl.int64)[:, None] * C + c[None, :]  # a map may hold more elements than 32 bits count
        inside = (row < rows)[:, None] & (c < C)[None, :]
        value = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
        d_y = tl.load(grad + offsets, mask=inside, other=0.0).to(tl.float32)
        if TANH:
            square = value * value
            share = 1.0 / (1.0 + tl.exp(-1.5957691216057308 * value * (1.0 + 0.044715 * square)))
            slope = 1.5957691216057308 * (1.0 + 0.134145 * square) * share * (1.0 - share)
        else:
            share = 0.5 + 0.5 * tl.erf(value * 0.7071067811865476)
            slope = 0.3989422804014327 * tl.exp(-0.5 * value * value)
        if y is not None:
            tl.store(y + offsets, (value * share).to(y.dtype.element_ty), mask=inside)
        d_x = d_y * (share + value * slope)
        tl.store(grad + offsets, d_x.to(grad.dtype.element_ty), mask=inside)
        total += d_x
    tl.store(sums + tl.program_id(1).to(tl.int64) * C + c, tl.sum(total, axis=0), mask=c < C)
