"""Triton kernels of the ELSA operator; formula in `__init__.py`, launched from `gpu.py`. Importing needs Triton.

Maps are [B, H, W, ...] with dense last dimensions. A program has one head of one tile of TILE_Y x TILE_X pixels and
goes through the taps a row of the kernel at a time, on blocks [ROW, P, D]: the taps of the row (padded to a power of
two), the pixels of the tile, and D channels of the head (padded, too). Channels are the fastest axis and taps the
slowest, so that a sum over taps stays inside a thread. All sums are float32.

The filter of a pixel is `exp(logit - lse)` with `lse` [B, H, W, heads] kept from the forward pass: a program can then
compute the filters of its neighbours, and the gradient of the values is a gather over mirrored taps.

Offsets inside a tile are 32 bits, the offset of a tile 64: maps may have more than 2**31 elements.
"""

import triton
import triton.language as tl

# What changes with the size of the image or the stage and gains nothing when known: no compilation for every kind
SIZES = ('B', 'H', 'W', 'heads', 'l_b', 'l_y', 'l_x')


@triton.jit
def _corner(tile, H, W, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Image, row and column of the first pixel of a tile."""
    across, down = tl.cdiv(W, TILE_X), tl.cdiv(H, TILE_Y)
    return tile // (across * down), tile // across % down * TILE_Y, tile % across * TILE_X


@triton.jit
def _offset(b, y, x, b_stride, y_stride, x_stride):
    return b.to(tl.int64) * b_stride + y.to(tl.int64) * y_stride + x.to(tl.int64) * x_stride


@triton.jit
def _pixels(y0, x0, H, W, TILE_Y: tl.constexpr, TILE_X: tl.constexpr):
    """Rows and columns of a tile's pixels [P] from its corner, and which are inside the image."""
    p = tl.arange(0, TILE_Y * TILE_X)
    y, x = p // TILE_X, p % TILE_X
    return y, x, (y < H - y0) & (x < W - x0)


@triton.jit
def _neighbours(y0, x0, y, x, i, H, W, K: tl.constexpr, SIGN: tl.constexpr, ROW: tl.constexpr):
    """Rows [P] and columns [ROW, P] of the neighbours at row `i` of the taps, and which exist [ROW, P].

    SIGN is 1, or -1 for mirrored taps.
    """
    tap = tl.arange(0, ROW)[:, None]
    yy = y + (i - K // 2) * SIGN
    xx = x[None, :] + (tap - K // 2) * SIGN
    exists = (yy >= -y0) & (yy < H - y0)
    return yy, xx, exists[None, :] & (xx >= -x0) & (xx < W - x0) & (tap < K)


@triton.jit
def _load_channels(pointer, offset, mask, c, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """[ROW, P, D] float32 of channels `c` [D] at `offset` [ROW, P]; zero where masked."""
    mask = mask[:, :, None]
    if HEAD_DIM % D != 0:
        mask = mask & (c < HEAD_DIM)[None, None, :]
    return tl.load(pointer + offset[:, :, None] + c[None, None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _load_static(pointer, i, c, C, HEAD_DIM: tl.constexpr, K: tl.constexpr, D: tl.constexpr, ROW: tl.constexpr):
    """[ROW, 1, D] float32 of the static filters [k*k, C] at row `i` of the taps."""
    tap = tl.arange(0, ROW)
    mask = (tap < K)[:, None] & (c < HEAD_DIM)[None, :]
    return tl.load(pointer + ((i * K + tap) * C)[:, None] + c[None, :], mask=mask, other=0.0).to(tl.float32)[:, None, :]


@triton.jit
def _load_filter(logits, offset, inside, K: tl.constexpr, ROW: tl.constexpr):
    """[ROW, P, ROW] float32 logits of all taps at `offset` [P]: zero outside the image, -inf in the padding."""
    row, tap = tl.arange(0, ROW)[:, None, None], tl.arange(0, ROW)[None, None, :]
    real = (row < K) & (tap < K)
    logit = tl.load(logits + offset[None, :, None] + row * K + tap, mask=real & inside[None, :, None], other=0.0)
    return tl.where(real, logit.to(tl.float32), float('-inf'))


@triton.jit(do_not_specialize=SIZES)
def forward(
    v, logits, add, out, lse, H, W, heads, v_b, v_y, v_x, l_b, l_y, l_x,
    HEAD_DIM: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """`out` [B, H, W, C] and `lse`; one program for each tile, head and D channels."""
    C = heads * HEAD_DIM
    BLOCKS: tl.constexpr = (HEAD_DIM + D - 1) // D
    part = tl.program_id(0) % (heads * BLOCKS)
    head, block = part // BLOCKS, part % BLOCKS
    b, y0, x0 = _corner(tl.program_id(0) // (heads * BLOCKS), H, W, TILE_Y, TILE_X)
    y, x, inside = _pixels(y0, x0, H, W, TILE_Y, TILE_X)
    c = block * D + tl.arange(0, D)
    v += _offset(b, y0, x0, v_b, v_y, v_x) + head * HEAD_DIM
    logits += _offset(b, y0, x0, l_b, l_y, l_x) + head * K * K
    pixel = _offset(b, y0, x0, H * W, W, 1) + y * W + x

    every = _load_filter(logits, y * l_y + x * l_x, inside, K, ROW)
    top = tl.max(tl.max(every, axis=0), axis=1)
    norm = top + tl.log(tl.sum(tl.sum(tl.exp(every - top[None, :, None]), axis=0), axis=1))
    if block == 0:  # not in the mask: the interpreter of Triton 3.9 makes integers of a scalar condition
        tl.store(lse + pixel * heads + head, norm, mask=inside)

    total = tl.zeros([TILE_Y * TILE_X, D], tl.float32)
    tap = tl.arange(0, ROW)[:, None]
    for i in range(K):
        offset = (y * l_y + x * l_x)[None, :] + i * K + tap
        logit = tl.load(logits + offset, mask=(tap < K) & inside[None, :], other=float('-inf')).to(tl.float32)
        yy, xx, exists = _neighbours(y0, x0, y, x, i, H, W, K, 1, ROW)
        value = _load_channels(v, (yy * v_y)[None, :] + xx * v_x, exists, c, HEAD_DIM, D)
        weight = tl.exp(logit - norm[None, :])[:, :, None]
        if add is not None:
            weight += _load_static(add + head * HEAD_DIM, i, c, C, HEAD_DIM, K, D, ROW)
        total += tl.sum(weight * value, axis=0)
    mask = inside[:, None] & (c < HEAD_DIM)[None, :]
    tl.store(out + (pixel * C)[:, None] + head * HEAD_DIM + c[None, :], total.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward_values(
    grad, logits, lse, add, grad_v, H, W, heads, g_b, g_y, g_x, l_b, l_y, l_x,
    HEAD_DIM: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """`grad_v` [B, H, W, C]: the sum over the pixels that read a value, each with the filter of that pixel."""
    C = heads * HEAD_DIM
    BLOCKS: tl.constexpr = (HEAD_DIM + D - 1) // D
    part = tl.program_id(0) % (heads * BLOCKS)
    head, block = part // BLOCKS, part % BLOCKS
    b, y0, x0 = _corner(tl.program_id(0) // (heads * BLOCKS), H, W, TILE_Y, TILE_X)
    y, x, inside = _pixels(y0, x0, H, W, TILE_Y, TILE_X)
    c = block * D + tl.arange(0, D)
    grad += _offset(b, y0, x0, g_b, g_y, g_x) + head * HEAD_DIM
    logits += _offset(b, y0, x0, l_b, l_y, l_x) + head * K * K
    pixel = _offset(b, y0, x0, H * W, W, 1)

    total = tl.zeros([TILE_Y * TILE_X, D], tl.float32)
    tap = tl.arange(0, ROW)[:, None]
    for i in range(K):
        yy, xx, exists = _neighbours(y0, x0, y, x, i, H, W, K, -1, ROW)
        logit = tl.load(logits + (yy * l_y)[None, :] + xx * l_x + i * K + tap, mask=exists, other=float('-inf'))
        norm = tl.load(lse + (pixel + (yy * W)[None, :] + xx) * heads + head, mask=exists, other=0.0)
        value = _load_channels(grad, (yy * g_y)[None, :] + xx * g_x, exists, c, HEAD_DIM, D)
        weight = tl.exp(logit.to(tl.float32) - norm)[:, :, None]
        if add is not None:
            weight += _load_static(add + head * HEAD_DIM, i, c, C, HEAD_DIM, K, D, ROW)
        total += tl.sum(weight * value, axis=0)
    offset = ((pixel + y * W + x) * C)[:, None] + head * HEAD_DIM + c[None, :]
    mask = inside[:, None] & (c < HEAD_DIM)[None, :]
    tl.store(grad_v + offset, total.to(grad_v.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward_logits(
    grad, v, logits, lse, grad_logits, H, W, heads, g_b, g_y, g_x, v_b, v_y, v_x, l_b, l_y, l_x,
    HEAD_DIM: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """`grad_logits` [B, H, W, heads * k*k], through the softmax: a * (g - sum(a * g)), `g` the gradient of `a`.

    One program for each tile and head. `g` of all taps is kept, [ROW, P, ROW], one row placed after the other.
    """
    head = tl.program_id(0) % heads
    b, y0, x0 = _corner(tl.program_id(0) // heads, H, W, TILE_Y, TILE_X)
    y, x, inside = _pixels(y0, x0, H, W, TILE_Y, TILE_X)
    grad += _offset(b, y0, x0, g_b, g_y, g_x) + head * HEAD_DIM
    v += _offset(b, y0, x0, v_b, v_y, v_x) + head * HEAD_DIM
    logits += _offset(b, y0, x0, l_b, l_y, l_x) + head * K * K
    pixel = _offset(b, y0, x0, H * W, W, 1) + y * W + x
    row, tap = tl.arange(0, ROW)[:, None, None], tl.arange(0, ROW)[None, None, :]

    grad_a = tl.zeros([ROW, TILE_Y * TILE_X, ROW], tl.float32)
    for start in range(0, HEAD_DIM, D):
        c = start + tl.arange(0, D)
        g = _load_channels(grad, (y * g_y + x * g_x)[None, :], inside[None, :], c, HEAD_DIM, D)
        for i in range(K):
            yy, xx, exists = _neighbours(y0, x0, y, x, i, H, W, K, 1, ROW)
            value = _load_channels(v, (yy * v_y)[None, :] + xx * v_x, exists, c, HEAD_DIM, D)
            grad_a += tl.where(row == i, tl.trans(tl.sum(g * value, axis=2))[None, :, :], 0.0)

    norm = tl.load(lse + pixel * heads + head, mask=inside, other=0.0)
    a = tl.exp(_load_filter(logits, y * l_y + x * l_x, inside, K, ROW) - norm[None, :, None])
    mean = tl.sum(tl.sum(a * grad_a, axis=0), axis=1)
    grad_logit = (a * (grad_a - mean[None, :, None])).to(grad_logits.dtype.element_ty)
    offset = ((pixel * heads + head) * K * K)[None, :, None] + row * K + tap
    tl.store(grad_logits + offset, grad_logit, mask=(row < K) & (tap < K) & inside[None, :, None])


@triton.jit(do_not_specialize=SIZES)
def backward_static(
    grad, v, sums_add, B, H, W, heads, g_b, g_y, g_x, v_b, v_y, v_x,
    HEAD_DIM: tl.constexpr, K: tl.constexpr, ROW: tl.constexpr, D: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Sums over pixels [CHUNKS, C, k*k] for the gradient of `add`.

    One program for each chunk of the tiles, row of taps, head and D channels.
    """
    C = heads * HEAD_DIM
    BLOCKS: tl.constexpr = (HEAD_DIM + D - 1) // D
    part = tl.program_id(0) % (heads * BLOCKS)
    head, block = part // BLOCKS, part % BLOCKS
    i = tl.program_id(0) // (heads * BLOCKS) % K
    chunk = tl.program_id(0) // (heads * BLOCKS * K)
    c = block * D + tl.arange(0, D)
    tiles = B * tl.cdiv(H, TILE_Y) * tl.cdiv(W, TILE_X)
    length = tl.cdiv(tiles, CHUNKS)
    tap = tl.arange(0, ROW)[:, None]

    total = tl.zeros([ROW, TILE_Y * TILE_X, D], tl.float32)
    for n in range(tl.minimum(length, tl.maximum(tiles - chunk * length, 0))):
        b, y0, x0 = _corner(chunk * length + n, H, W, TILE_Y, TILE_X)
        y, x, inside = _pixels(y0, x0, H, W, TILE_Y, TILE_X)
        yy, xx, exists = _neighbours(y0, x0, y, x, i, H, W, K, 1, ROW)
        g = _load_channels(
            grad + _offset(b, y0, x0, g_b, g_y, g_x) + head * HEAD_DIM,
            (y * g_y + x * g_x)[None, :], inside[None, :], c, HEAD_DIM, D,
        )  # fmt: skip
        value = _load_channels(
            v + _offset(b, y0, x0, v_b, v_y, v_x) + head * HEAD_DIM,
            (yy * v_y)[None, :] + xx * v_x, exists, c, HEAD_DIM, D,
        )  # fmt: skip
        total += g * value

    offset = (chunk.to(tl.int64) * C + head * HEAD_DIM + c[None, :]) * K * K + i * K + tap
    mask = (tap < K) & (c < HEAD_DIM)[None, :]
    tl.store(sums_add + offset, tl.sum(total, axis=1), mask=mask)
