"""The Triton kernels of window and grid attention, one forward, one backward; launched from `gpu.py`.

    attn = softmax(scale * q @ k^T + bias + mask),  out = attn @ v        in every window and head, N tokens each
    d_v = attn^T @ d_out,  d_attn = d_out @ v^T,  d_logits = attn * (d_attn - sum_keys(attn * d_attn))
    d_q = scale * d_logits @ k,  d_k = scale * d_logits^T @ q,  d_bias = sum_windows(d_logits)

Layout: a program owns one head of a run of windows and takes them one by one. Where a token of a window lies in the map
[B, H, W, 3 * C] is arithmetic on its number (`_places`), so nothing is padded, rolled or cut in memory, and the masks
of shifted windows and of padding are never stored. A window's N tokens fill a block of a power of two; windows of more
than 64 tokens take their queries block by block.

Accumulation: logits, softmax and all sums in float32. The operands of the products are in the type of `qkv`; float32 is
multiplied as float32, or as TF32 where PyTorch's own products may be. Saved for the backward are the inputs alone.

No atomics: a token belongs to one window, so its gradient is written by one program. The gradients of bias and padding
are summed over a program's run of windows, and PyTorch sums the runs.

Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.2; Tu et al., "MaxViT" (arXiv 2204.01697), section
3.2; the backward without stored weights: Dao et al., "FlashAttention" (arXiv 2205.14135), section 3.1.
"""

import triton
import triton.language as tl

# numbers that are asked for at run time: one kernel for maps of every size and any number of heads
SIZES = ('H', 'W', 'rows', 'cols', 'windows', 'run', 'num_heads', 'height', 'width')


@triton.jit
def _places(
    window, first, H, W, rows, cols, window_h, window_w,
    SHIFT: tl.constexpr, GRID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where tokens `first`, ... of a window lie: row and column in the map, and region inside the window.

    Also whether they lie inside the map, or in its padding; the rest of the block is neither. The regions of the rolled
    map meet at the edges of the last windows, and inside them where the tokens that were rolled in begin.
    """
    token = first + tl.arange(0, BLOCK)
    y, x = token // window_w, token % window_w
    row, col = window // cols, window % cols
    rolled_in = (y >= window_h - SHIFT).to(tl.int32) * 2 + (x >= window_w - SHIFT).to(tl.int32)
    region = rolled_in & ((row == rows - 1).to(tl.int32) * 2 + (col == cols - 1).to(tl.int32))
    if GRID:
        y, x = y * rows + row, x * cols + col
    else:
        y, x = y + row * window_h, x + col * window_w
        if SHIFT > 0:
            Hp, Wp = rows * window_h, cols * window_w
            y, x = y + SHIFT, x + SHIFT
            y, x = tl.where(y < Hp, y, y - Hp), tl.where(x < Wp, x, x - Wp)
    on_map = (y < H) & (x < W)
    exists = token < window_h * window_w
    return y, x, region, exists & on_map, exists & (on_map == 0)


@triton.jit
def _load(
    base, offsets, inside, padded, padding,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """q, k or v of a block of tokens, [BLOCK, BLOCK_D]: zero outside the map, or the padding's."""
    d = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (d < HEAD_DIM)[None, :]
    tokens = tl.load(base + offsets[:, None] + d[None, :], mask=mask, other=0.0)
    if PADDING == 'vector':
        vector = tl.load(padding + d, mask=d < HEAD_DIM, other=0.0).to(tokens.dtype)
        tokens = tl.where(padded[:, None], vector[None, :], tokens)
    return tokens


@triton.jit
def _load_bias(bias, query, key, N):
    """The bias of `query` and `key`, one a row and one a column, -inf for keys beyond the window: nobody attends to
    them."""
    tile = tl.load(bias + query * N + key, mask=(query < N) & (key < N), other=0.0).to(tl.float32)
    return tl.where(key < N, tile, float('-inf'))


@triton.jit
def _dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION)


@triton.jit
def _exponentials(
    a, b, tile, scale, region_a, region_b, hidden,
    KEYS: tl.constexpr, SHIFT: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """exp(logits - their maximum), a row for each token of `a`, and the sums over the keys, which are axis KEYS."""
    logits = _dot(a, tl.trans(b), OPERAND, PRECISION) * scale + tile
    if SHIFT > 0:
        logits += tl.where(region_a[:, None] == region_b[None, :], 0.0, MASKED)
    if PADDING == 'hidden':
        logits = tl.where(hidden, float('-inf'), logits)
    weights = tl.exp(logits - tl.expand_dims(tl.max(logits, axis=KEYS), KEYS))
    return weights, tl.sum(weights, axis=KEYS)


@triton.jit(do_not_specialize=SIZES)
def forward(
    qkv, bias, padding, out, H, W, rows, cols, windows, run, num_heads, height, width,
    stride_b, stride_h, stride_w, scale,
    HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, GRID: tl.constexpr, PADDING: tl.constexpr,
    MASKED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs (heads, runs). `qkv` [B, H, W, 3 * C] with strides, `bias` and `out` [B, H, W, C] dense."""
    window_h, window_w = height if WINDOW == 0 else WINDOW, width if WINDOW == 0 else WINDOW
    C, N = num_heads * HEAD_DIM, window_h * window_w
    queries = BLOCK_N if BLOCK_M == BLOCK_N else N  # known where it is one block
    head, first = tl.program_id(0), tl.program_id(1) * run
    d, key = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    bias += head * N * N
    padding += head * HEAD_DIM
    if BLOCK_M == BLOCK_N:  # one block of queries: its bias stays in registers
        tile = _load_bias(bias, key[:, None], key[None, :], N)

    for number in range(first, tl.minimum(first + run, windows)):
        image, window = number // (rows * cols), number % (rows * cols)
        image = image.to(tl.int64)  # a batch may hold more elements than 32 bits count, one image does not
        base = qkv + image * stride_b + head * HEAD_DIM
        out_base = out + image * H * W * C + head * HEAD_DIM
        y, x, region_k, inside_k, padded = _places(
            window, 0, H, W, rows, cols, window_h, window_w, SHIFT, GRID, BLOCK_N
        )
        offsets = y * stride_h + x * stride_w
        k = _load(base + C, offsets, inside_k, padded, padding + C, HEAD_DIM, BLOCK_D, PADDING)
        v = _load(base + 2 * C, offsets, inside_k, padded, padding + 2 * C, HEAD_DIM, BLOCK_D, PADDING)

        for m in range(0, queries, BLOCK_M):
            y_q, x_q, region_q, inside_q, _ = _places(
                window, m, H, W, rows, cols, window_h, window_w, SHIFT, GRID, BLOCK_M
            )
            q = _load(base, y_q * stride_h + x_q * stride_w, inside_q, inside_q, padding, HEAD_DIM, BLOCK_D, 'none')
            if BLOCK_M == BLOCK_N:
                weights, sums = _exponentials(
                    q, k, tile, scale, region_q, region_k, padded[None, :],
                    1, SHIFT, PADDING, MASKED, OPERAND, PRECISION,
                )  # fmt: skip
                weights = weights.to(q.dtype)
            else:  # the warps share the keys, of which there are more
                tile = _load_bias(bias, m + tl.arange(0, BLOCK_M)[None, :], key[:, None], N)
                weights, sums = _exponentials(
                    k, q, tile, scale, region_k, region_q, padded[:, None],
                    0, SHIFT, PADDING, MASKED, OPERAND, PRECISION,
                )  # fmt: skip
                weights = tl.trans(weights.to(q.dtype))
            values = _dot(weights, v, OPERAND, PRECISION) / sums[:, None]
            mask = inside_q[:, None] & (d < HEAD_DIM)[None, :]
            tl.store(out_base + ((y_q * W + x_q) * C)[:, None] + d[None, :], values.to(q.dtype), mask=mask)


@triton.jit(do_not_specialize=SIZES)
def backward(
    grad, qkv, bias, padding, grad_qkv, sums_bias, sums_padding,
    H, W, rows, cols, windows, run, num_heads, height, width, stride_b, stride_h, stride_w, scale,
    HEAD_DIM: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, GRID: tl.constexpr, PADDING: tl.constexpr,
    MASKED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As the forward, with a row for each key and a column for each query: the warps of a program share the keys, of
    which there are more, and two of the three gradients take the weights as they lie in registers.

    `grad` [B, H, W, C] and `grad_qkv` [B, H, W, 3 * C] dense; the sums of each run of windows, `sums_bias`
    [runs, heads, N, N] (zeros where there are several blocks of queries) and `sums_padding` [runs, 3 * C].

    A query beyond the map gets no gradient (`grad` is zero there), and with it passes none on.
    """
    window_h, window_w = height if WINDOW == 0 else WINDOW, width if WINDOW == 0 else WINDOW
    C, N = num_heads * HEAD_DIM, window_h * window_w
    queries = BLOCK_N if BLOCK_M == BLOCK_N else N  # known where it is one block
    head, first = tl.program_id(0), tl.program_id(1) * run
    d, key = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_N)
    bias += head * N * N
    padding += head * HEAD_DIM
    sums_bias += (tl.program_id(1) * num_heads + head).to(tl.int64) * N * N
    sums_padding += tl.program_id(1) * 3 * C + head * HEAD_DIM
    if BLOCK_M == BLOCK_N:
        tile = _load_bias(bias, key[None, :], key[:, None], N)
        d_bias = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    if PADDING == 'vector':
        d_padding_k, d_padding_v = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)

    for number in range(first, tl.minimum(first + run, windows)):
        image, window = number // (rows * cols), number % (rows * cols)
        image = image.to(tl.int64)
        base = qkv + image * stride_b + head * HEAD_DIM
        grad_base = grad + image * H * W * C + head * HEAD_DIM
        out_base = grad_qkv + image * H * W * 3 * C + head * HEAD_DIM
        y, x, region_k, inside_k, padded = _places(
            window, 0, H, W, rows, cols, window_h, window_w, SHIFT, GRID, BLOCK_N
        )
        offsets_k = y * stride_h + x * stride_w
        out_k = out_base + C + ((y * W + x) * 3 * C)[:, None] + d[None, :]
        k = _load(base + C, offsets_k, inside_k, padded, padding + C, HEAD_DIM, BLOCK_D, PADDING)
        v = _load(base + 2 * C, offsets_k, inside_k, padded, padding + 2 * C, HEAD_DIM, BLOCK_D, PADDING)
        d_k, d_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

        for m in range(0, queries, BLOCK_M):
            y_q, x_q, region_q, inside_q, _ = _places(
                window, m, H, W, rows, cols, window_h, window_w, SHIFT, GRID, BLOCK_M
            )
            q = _load(base, y_q * stride_h + x_q * stride_w, inside_q, inside_q, padding, HEAD_DIM, BLOCK_D, 'none')
            d_out = _load(grad_base, (y_q * W + x_q) * C, inside_q, inside_q, padding, HEAD_DIM, BLOCK_D, 'none')
            query = m + tl.arange(0, BLOCK_M)
            if BLOCK_M != BLOCK_N:
                tile = _load_bias(bias, query[None, :], key[:, None], N)
            weights, sums = _exponentials(
                k, q, tile, scale, region_k, region_q, padded[:, None],
                0, SHIFT, PADDING, MASKED, OPERAND, PRECISION,
            )  # fmt: skip
            attn = weights / sums[None, :]
            d_v += _dot(attn.to(q.dtype), d_out, OPERAND, PRECISION)
            d_attn = _dot(v, tl.trans(d_out), OPERAND, PRECISION)
            d_logits = attn * (d_attn - tl.sum(attn * d_attn, axis=0)[None, :])

            if BLOCK_M == BLOCK_N:
                d_bias += d_logits
            else:  # too many for the registers: kept in this program's own sums
                places = sums_bias + query[None, :] * N + key[:, None]
                mask = (query < N)[None, :] & (key < N)[:, None]
                tl.debug_barrier()  # another thread of the program may have written what this one reads
                tl.store(places, tl.load(places, mask=mask, other=0.0) + d_logits, mask=mask)

            d_logits = d_logits.to(q.dtype)
            d_k += _dot(d_logits, q, OPERAND, PRECISION)
            d_q = _dot(tl.trans(d_logits), k, OPERAND, PRECISION) * scale
            mask = inside_q[:, None] & (d < HEAD_DIM)[None, :]
            tl.store(out_base + ((y_q * W + x_q) * 3 * C)[:, None] + d[None, :], d_q.to(q.dtype), mask=mask)

        d_k *= scale
        mask = inside_k[:, None] & (d < HEAD_DIM)[None, :]
        tl.store(out_k, d_k.to(k.dtype), mask=mask)
        tl.store(out_k + C, d_v.to(k.dtype), mask=mask)
        if PADDING == 'vector':
            d_padding_k += tl.sum(tl.where(padded[:, None], d_k, 0.0), axis=0)
            d_padding_v += tl.sum(tl.where(padded[:, None], d_v, 0.0), axis=0)

    if BLOCK_M == BLOCK_N:
        mask = (key < N)[:, None] & (key < N)[None, :]
        tl.store(sums_bias + key[None, :] * N + key[:, None], d_bias, mask=mask)
    if PADDING == 'vector':
        tl.store(sums_padding + d, tl.zeros([BLOCK_D], tl.float32), mask=d < HEAD_DIM)
        tl.store(sums_padding + C + d, d_padding_k, mask=d < HEAD_DIM)
        tl.store(sums_padding + 2 * C + d, d_padding_v, mask=d < HEAD_DIM)
