"""Window and grid attention on the GPU, as two Triton kernels: one forward, one backward.

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
are summed over a program's run of windows, and PyTorch sums the runs. Their number follows from shapes and GPU: the
same inputs give the same bits.

Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.2; Tu et al., "MaxViT" (arXiv 2204.01697), section
3.2; the backward without stored weights: Dao et al., "FlashAttention" (arXiv 2205.14135), section 3.1.
"""

from __future__ import annotations  # the kernels' annotations name Triton, which is imported at their first use

import functools
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..dispatcher import constant_in_graphs, gradients
from ..partition import Size
from ..triton_start import Refused, cannot_start, or_in_torch
from .autograd import WindowAttentionFunction, register_window_attention
from .reference import MASKED, attend_in_windows

if TYPE_CHECKING:
    import triton.language as tl

MAX_TOKENS, MAX_HEAD_DIM = 256, 128
KIB = 1024
MAX_BLOCK = 32 * KIB  # of keys; half of it on GPUs with less than SHARED memory for a program, whose backward holds 5
SHARED = 160 * KIB
LOGITS = 8192  # in registers at once; windows of more than 64 tokens take so many queries at a time
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
RUNS_PER_PROCESSOR = 8  # programs for each multiprocessor of the GPU, where there are windows enough


# ---- The kernels: plain functions until `_load_triton` ----


def _places(
    window, first, H, W, rows, cols,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, SHIFT: tl.constexpr, GRID: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Where tokens `first`, ... of a window lie: row and column in the map, and region inside the window.

    Also whether they lie inside the map, or in its padding; the rest of the block is neither. The regions of the rolled
    map meet at the edges of the last windows, and inside them where the tokens that were rolled in begin.
    """
    token = first + tl.arange(0, BLOCK)
    y, x = token // WINDOW_W, token % WINDOW_W
    row, col = window // cols, window % cols
    rolled_in = (y >= WINDOW_H - SHIFT).to(tl.int32) * 2 + (x >= WINDOW_W - SHIFT).to(tl.int32)
    region = rolled_in & ((row == rows - 1).to(tl.int32) * 2 + (col == cols - 1).to(tl.int32))
    if GRID:
        y, x = y * rows + row, x * cols + col
    else:
        y, x = y + row * WINDOW_H, x + col * WINDOW_W
        if SHIFT > 0:
            Hp, Wp = rows * WINDOW_H, cols * WINDOW_W
            y, x = y + SHIFT, x + SHIFT
            y, x = tl.where(y < Hp, y, y - Hp), tl.where(x < Wp, x, x - Wp)
    on_map = (y < H) & (x < W)
    exists = token < WINDOW_H * WINDOW_W
    return y, x, region, exists & on_map, exists & (on_map == 0)


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


def _load_bias(bias, head, first, N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """[BLOCK_M, BLOCK_N] of the bias, -inf for keys beyond the window: nobody attends to them."""
    query, key = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    mask = (query < N)[:, None] & (key < N)[None, :]
    tile = tl.load(bias + head * N * N + query[:, None] * N + key[None, :], mask=mask, other=0.0).to(tl.float32)
    return tl.where((key < N)[None, :], tile, float('-inf'))


def _dot(a, b, OPERAND: tl.constexpr, PRECISION: tl.constexpr):
    return tl.dot(a.to(OPERAND), b.to(OPERAND), input_precision=PRECISION)


def _exponentials(
    q, k, tile, scale, region_q, region_k, padded_k,
    SHIFT: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr, OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """exp(logits - their maximum), [BLOCK_M, BLOCK_N], and the sums over the keys."""
    logits = _dot(q, tl.trans(k), OPERAND, PRECISION) * scale + tile
    if SHIFT > 0:
        logits += tl.where(region_q[:, None] == region_k[None, :], 0.0, MASKED)
    if PADDING == 'hidden':
        logits = tl.where(padded_k[None, :], float('-inf'), logits)
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    return weights, tl.sum(weights, axis=1)


def _forward_kernel(
    qkv, bias, padding, out, H, W, rows, cols, windows, run, stride_b, stride_h, stride_w, scale,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr,
    SHIFT: tl.constexpr, GRID: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Programs (heads, runs). `qkv` [B, H, W, 3 * C] with strides, `bias` and `out` [B, H, W, C] dense."""
    C: tl.constexpr = NUM_HEADS * HEAD_DIM
    N: tl.constexpr = WINDOW_H * WINDOW_W
    head, first = tl.program_id(0), tl.program_id(1) * run
    d = tl.arange(0, BLOCK_D)
    padding += head * HEAD_DIM
    if BLOCK_M == BLOCK_N:  # one block of queries: its bias stays in registers
        tile = _load_bias(bias, head, 0, N, BLOCK_M, BLOCK_N)

    for number in range(first, tl.minimum(first + run, windows)):
        image, window = number // (rows * cols), number % (rows * cols)
        image = image.to(tl.int64)  # a batch may hold more elements than 32 bits count, one image does not
        base = qkv + image * stride_b + head * HEAD_DIM
        out_base = out + image * H * W * C + head * HEAD_DIM
        y, x, region_k, inside_k, padded = _places(
            window, 0, H, W, rows, cols, WINDOW_H, WINDOW_W, SHIFT, GRID, BLOCK_N
        )
        offsets = y * stride_h + x * stride_w
        k = _load(base + C, offsets, inside_k, padded, padding + C, HEAD_DIM, BLOCK_D, PADDING)
        v = _load(base + 2 * C, offsets, inside_k, padded, padding + 2 * C, HEAD_DIM, BLOCK_D, PADDING)

        for m in range(0, BLOCK_N, BLOCK_M):
            y_q, x_q, region_q, inside_q, _ = _places(
                window, m, H, W, rows, cols, WINDOW_H, WINDOW_W, SHIFT, GRID, BLOCK_M
            )
            q = _load(base, y_q * stride_h + x_q * stride_w, inside_q, inside_q, padding, HEAD_DIM, BLOCK_D, 'none')
            if BLOCK_M != BLOCK_N:
                tile = _load_bias(bias, head, m, N, BLOCK_M, BLOCK_N)
            weights, sums = _exponentials(
                q, k, tile, scale, region_q, region_k, padded, SHIFT, PADDING, MASKED, OPERAND, PRECISION
            )
            values = _dot(weights.to(q.dtype), v, OPERAND, PRECISION) / sums[:, None]
            mask = inside_q[:, None] & (d < HEAD_DIM)[None, :]
            tl.store(out_base + ((y_q * W + x_q) * C)[:, None] + d[None, :], values.to(q.dtype), mask=mask)


def _backward_kernel(
    grad, qkv, bias, padding, grad_qkv, sums_bias, sums_padding,
    H, W, rows, cols, windows, run, stride_b, stride_h, stride_w, scale,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr,
    SHIFT: tl.constexpr, GRID: tl.constexpr, PADDING: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    OPERAND: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """As the forward. `grad` [B, H, W, C] and `grad_qkv` [B, H, W, 3 * C] dense; the sums of each run of windows,
    `sums_bias` [runs, heads, N, N] (zeros where there are several blocks of queries) and `sums_padding` [runs, 3 * C].

    A query beyond the map gets no gradient (`grad` is zero there), and with it passes none on.
    """
    C: tl.constexpr = NUM_HEADS * HEAD_DIM
    N: tl.constexpr = WINDOW_H * WINDOW_W
    head, first = tl.program_id(0), tl.program_id(1) * run
    d = tl.arange(0, BLOCK_D)
    key = tl.arange(0, BLOCK_N)
    padding += head * HEAD_DIM
    sums_bias += (tl.program_id(1) * NUM_HEADS + head).to(tl.int64) * N * N
    sums_padding += tl.program_id(1) * 3 * C + head * HEAD_DIM
    if BLOCK_M == BLOCK_N:
        tile = _load_bias(bias, head, 0, N, BLOCK_M, BLOCK_N)
        d_bias = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if PADDING == 'vector':
        d_padding_k, d_padding_v = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)

    for number in range(first, tl.minimum(first + run, windows)):
        image, window = number // (rows * cols), number % (rows * cols)
        image = image.to(tl.int64)
        base = qkv + image * stride_b + head * HEAD_DIM
        grad_base = grad + image * H * W * C + head * HEAD_DIM
        out_base = grad_qkv + image * H * W * 3 * C + head * HEAD_DIM
        y, x, region_k, inside_k, padded = _places(
            window, 0, H, W, rows, cols, WINDOW_H, WINDOW_W, SHIFT, GRID, BLOCK_N
        )
        offsets_k = y * stride_h + x * stride_w
        out_k = out_base + C + ((y * W + x) * 3 * C)[:, None] + d[None, :]
        k = _load(base + C, offsets_k, inside_k, padded, padding + C, HEAD_DIM, BLOCK_D, PADDING)
        v = _load(base + 2 * C, offsets_k, inside_k, padded, padding + 2 * C, HEAD_DIM, BLOCK_D, PADDING)
        d_k, d_v = tl.zeros([BLOCK_N, BLOCK_D], tl.float32), tl.zeros([BLOCK_N, BLOCK_D], tl.float32)

        for m in range(0, BLOCK_N, BLOCK_M):
            y_q, x_q, region_q, inside_q, _ = _places(
                window, m, H, W, rows, cols, WINDOW_H, WINDOW_W, SHIFT, GRID, BLOCK_M
            )
            q = _load(base, y_q * stride_h + x_q * stride_w, inside_q, inside_q, padding, HEAD_DIM, BLOCK_D, 'none')
            d_out = _load(grad_base, (y_q * W + x_q) * C, inside_q, inside_q, padding, HEAD_DIM, BLOCK_D, 'none')
            if BLOCK_M != BLOCK_N:
                tile = _load_bias(bias, head, m, N, BLOCK_M, BLOCK_N)
            weights, sums = _exponentials(
                q, k, tile, scale, region_q, region_k, padded, SHIFT, PADDING, MASKED, OPERAND, PRECISION
            )
            attn = weights / sums[:, None]
            d_v += _dot(tl.trans(attn.to(q.dtype)), d_out, OPERAND, PRECISION)
            d_attn = _dot(d_out, tl.trans(v), OPERAND, PRECISION)
            d_logits = attn * (d_attn - tl.sum(attn * d_attn, axis=1)[:, None])

            if BLOCK_M == BLOCK_N:
                d_bias += d_logits
            else:  # too many for the registers: kept in this program's own sums
                query = m + tl.arange(0, BLOCK_M)
                places = sums_bias + query[:, None] * N + key[None, :]
                mask = (query < N)[:, None] & (key < N)[None, :]
                tl.debug_barrier()  # another thread of the program may have written what this one reads
                tl.store(places, tl.load(places, mask=mask, other=0.0) + d_logits, mask=mask)

            d_logits = d_logits.to(q.dtype)
            d_q = _dot(d_logits, k, OPERAND, PRECISION) * scale
            d_k += _dot(tl.trans(d_logits), q, OPERAND, PRECISION)
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
        tl.store(sums_bias + key[:, None] * N + key[None, :], d_bias, mask=mask)
    if PADDING == 'vector':
        tl.store(sums_padding + d, tl.zeros([BLOCK_D], tl.float32), mask=d < HEAD_DIM)
        tl.store(sums_padding + C + d, d_padding_k, mask=d < HEAD_DIM)
        tl.store(sums_padding + 2 * C + d, d_padding_v, mask=d < HEAD_DIM)


# ---- Their launch ----


@functools.cache
def _load_triton() -> str | None:
    """Import Triton and hand it the functions above; they find it as `tl` and each other by name.

    Returns what went wrong, if it did.
    """
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        return f'Triton cannot be imported ({error})'
    if find_spec('triton.backends') is None:
        return f'Triton {triton.__version__} is too old: the kernels are for 3.0 and newer'
    globals()['tl'] = tl
    for function in (_places, _load, _load_bias, _dot, _exponentials):
        globals()[function.__name__] = triton.jit(function)
    sizes = ['H', 'W', 'rows', 'cols', 'windows', 'run']  # of the map: no kernel of their own for multiples of 16
    for function in (_forward_kernel, _backward_kernel):
        globals()[function.__name__] = triton.jit(function, do_not_specialize=sizes)
    return None


def _interpreted() -> bool:
    """Whether Triton was imported under TRITON_INTERPRET=1: kernels then run as NumPy code, on any device."""
    import triton

    return not isinstance(_forward_kernel, triton.JITFunction)


@constant_in_graphs
def _why_not_on(device: torch.device) -> str | None:
    if (problem := cannot_start(device) or _load_triton()) is not None:
        return problem
    if _interpreted():
        return None
    if device.type != 'cuda':
        return f'needs a tensor on a GPU, not on {device}'
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 0):
        return f'Triton needs a GPU of compute capability 8.0; {torch.cuda.get_device_name(device)} has less'
    return None


@constant_in_graphs
def _largest_block(device: torch.device) -> int:
    if device.type != 'cuda':
        return MAX_BLOCK
    shared = getattr(torch.cuda.get_device_properties(device), 'shared_memory_per_block_optin', 0)
    return MAX_BLOCK if shared >= SHARED else MAX_BLOCK // 2


def why_not(
    device: torch.device | None = None, dtype: torch.dtype = torch.float32, head_dim: int = 1, tokens: int = 1
) -> str | None:
    """Why the kernels cannot run on `device` (None: the current GPU) for `qkv` of this type, or None.

    Args:
        device: of `qkv`.
        dtype: of `qkv`.
        head_dim: channels of a head.
        tokens: of a window, N.
    """
    device = torch.device('cuda') if device is None else device
    if (problem := _why_not_on(device)) is not None:
        return problem
    if dtype not in DTYPES:
        return f'no kernel for {dtype}'
    if head_dim > MAX_HEAD_DIM:
        return f'heads of {head_dim} channels, at most {MAX_HEAD_DIM} fit'
    if tokens > MAX_TOKENS:
        return f'windows of {tokens} tokens, at most {MAX_TOKENS} fit'
    block, fitting = _block(tokens) * _block(head_dim) * dtype.itemsize, _largest_block(device)
    if block > fitting:
        return f'{tokens} tokens of {head_dim} channels, {dtype}, take {block // KIB} KiB; {fitting // KIB} KiB fit'
    return None


def _block(size: int) -> int:
    """The power of two that holds `size`; 16 is the least that Triton multiplies."""
    return max(16, 1 << (size - 1).bit_length())


def _tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # the newer name; where it is set, the older may refuse to be read
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32


def _options(qkv: Tensor, has_padding: bool, num_heads: int, window_size: Size, shift_size: int, grid: bool) -> dict:
    """What both kernels are compiled for; `_load_triton` goes before."""
    import triton.language as tl

    (_, H, W, C3), (h, w) = qkv.shape, window_size
    is_whole = H % h == 0 and W % w == 0
    block = _block(h * w)
    dtypes = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    exact = _interpreted() and qkv.dtype == torch.bfloat16  # whose product the interpreter lacks
    return {
        'NUM_HEADS': num_heads,
        'HEAD_DIM': C3 // 3 // num_heads,
        'WINDOW_H': h,
        'WINDOW_W': w,
        'SHIFT': shift_size,
        'GRID': grid,
        'PADDING': 'none' if is_whole else 'vector' if has_padding else 'hidden',
        'MASKED': MASKED,
        'BLOCK_M': min(block, LOGITS // block),
        'BLOCK_N': block,
        'BLOCK_D': _block(C3 // 3 // num_heads),
        'OPERAND': tl.float32 if exact else dtypes[qkv.dtype],
        'PRECISION': 'tf32' if _tf32() else 'ieee',
        # as few as keep a window of 7 x 7 and its gradients in registers, but for a few bytes
        'num_warps': (4 if block <= 64 else 8) * (2 if qkv.dtype == torch.float32 else 1),
    }


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == 'cuda' else 1


def _runs(qkv: Tensor, num_heads: int, window_size: Size) -> tuple[int, tuple[int, ...]]:
    """The number of runs of windows, and what the kernels need to know of map and runs."""
    B, H, W, C3 = qkv.shape
    problem = why_not(qkv.device, qkv.dtype, C3 // 3 // num_heads, window_size[0] * window_size[1])
    if problem is not None:
        raise Refused(f'window_attention_gpu: {problem}')
    rows, cols = -(-H // window_size[0]), -(-W // window_size[1])  # of windows, or of tokens of a cell
    windows = B * rows * cols
    run = -(-windows // max(1, RUNS_PER_PROCESSOR * _processors(qkv.device) // num_heads)) or 1
    runs = -(-windows // run) or 1
    return runs, (H, W, rows, cols, windows, run, *qkv.stride()[:3])


def _dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _forward(
    qkv: Tensor,
    bias: Tensor,
    padding: Tensor | None,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
) -> Tensor:
    qkv = _dense(qkv)
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    runs, numbers = _runs(qkv, num_heads, window_size)
    options = _options(qkv, padding is not None, num_heads, window_size, shift_size, grid)
    vector = qkv if padding is None else padding.contiguous()  # without padding a pointer that is not read
    tensors = qkv, bias.contiguous(), vector, out
    stages = 1 if qkv.dtype == torch.float32 else 2  # the next window is loaded during this one's products
    with torch.cuda.device_of(qkv):
        _forward_kernel[num_heads, runs](*tensors, *numbers, scale, **options, num_stages=stages)
    return out


def _backward(
    grad: Tensor,
    qkv: Tensor,
    bias: Tensor,
    padding: Tensor | None,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    qkv = _dense(qkv)
    grad_qkv = qkv.new_empty(qkv.shape)
    runs, numbers = _runs(qkv, num_heads, window_size)
    options = _options(qkv, padding is not None, num_heads, window_size, shift_size, grid)
    new_sums = torch.empty if options['BLOCK_M'] == options['BLOCK_N'] else torch.zeros
    sums_bias = new_sums(runs, *bias.shape, dtype=torch.float32, device=qkv.device)
    sums_padding = torch.empty(runs, qkv.shape[3], dtype=torch.float32, device=qkv.device)
    vector = qkv if padding is None else padding.contiguous()
    tensors = grad.contiguous(), qkv, bias.contiguous(), vector, grad_qkv, sums_bias, sums_padding
    with torch.cuda.device_of(qkv):
        _backward_kernel[num_heads, runs](*tensors, *numbers, scale, **options, num_stages=1)
    if padding is None:
        grad_padding = bias.new_empty(0)
    elif options['PADDING'] == 'none':
        grad_padding = torch.zeros_like(padding)
    else:
        grad_padding = sums_padding.sum(dim=0).to(padding.dtype)
    return grad_qkv, sums_bias.sum(dim=0).to(bias.dtype), grad_padding


def _forward_in_torch(qkv, bias, padding, num_heads, window_size, scale, shift_size, grid):
    options = {'num_heads': num_heads, 'window_size': tuple(window_size), 'scale': scale, 'shift_size': shift_size}
    return attend_in_windows(qkv, bias, **options, grid=grid, padding=padding, dropout=0.0, fused=True)


def _backward_in_torch(grad, qkv, bias, padding, *options):
    grads = gradients(lambda *tensors: _forward_in_torch(*tensors, *options), (qkv, bias, padding), grad)
    grads = [None if each is None else each.contiguous() for each in grads]
    return *grads[:2], bias.new_empty(0) if padding is None else grads[2]


# On the CPU the same functions serve Triton's interpreter
register_window_attention(
    'window_attention_triton',
    or_in_torch(_forward, _forward_in_torch),
    or_in_torch(_backward, _backward_in_torch),
    ('CUDA', 'CPU'),
)


def window_attention_gpu(
    qkv: Tensor,
    bias: Tensor,
    *,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int = 0,
    grid: bool = False,
    padding: Tensor | None = None,
) -> Tensor:
    """`ops.window_attention` after its checks.

    Args:
        qkv: [B, H, W, 3 * C], float32, float16 or bfloat16; read where it lies, but for channels that are not dense.
        bias: [num_heads, N, N], query by key, of any floating type; computed with in float32.
        num_heads: heads that share the C channels.
        window_size: (window_h, window_w) in tokens, N = window_h * window_w.
        scale: factor of q @ k^T.
        shift_size: roll of the padded map by -shift_size, less than both edges of a window.
        grid: grid groups instead of windows; not with a shift.
        padding: [3 * C], q, k and v of a token of the padding, rounded to the type of `qkv`; None hides the padding.

    Returns:
        [B, H, W, C], dense, in the type of `qkv`.

    Raises:
        RuntimeError: where `why_not` knows a reason.
    """
    options = num_heads, tuple(window_size), scale, shift_size, grid
    return WindowAttentionFunction.apply('window_attention_triton', qkv, bias, padding, *options)
