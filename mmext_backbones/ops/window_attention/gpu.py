"""Window and grid attention on the GPU: the launch of two Triton kernels, one forward, one backward (`gpu_kernels.py`).

The number of programs follows from shapes and GPU: the same inputs give the same bits. Saved for the backward are the
inputs alone. Triton is imported at the first use. In its interpreter (TRITON_INTERPRET=1 before that) the kernels run
on the CPU.
"""

from types import ModuleType

import torch
from torch import Tensor

from ..caching import load_once
from ..dispatcher import constant_in_graphs, gradients
from ..gpu_compiling import can_compile_ahead, compile_ahead, launch
from ..gpu_support import capability_of, is_interpreted, processors, why_not_on
from ..partition import Size
from ..self_check import Launcher, checked
from ..triton_start import Refused, or_in_torch
from .autograd import WindowAttentionFunction, register_window_attention
from .reference import MASKED, attend_in_windows

KERNEL = 'window_attention'
CAPABILITY = (8, 0)  # of the oldest GPU of NVIDIA
MAX_TOKENS, MAX_HEAD_DIM = 256, 128
KIB = 1024
MAX_BLOCK = 32 * KIB  # of keys; half of it on GPUs with less than SHARED memory for a program, whose backward holds 5
SHARED = 160 * KIB
LOGITS = 8192  # in registers at once; windows of more than 64 tokens take so many queries at a time
SPILLED = 450  # bytes of stack of a thread, about 100 numbers; what has more has kilobytes
EDGES = 7, 8, 12, 16  # of published networks' windows, each a constant of its own kernels; others share one for a block
RUNS_PER_PROCESSOR = 8  # programs for each multiprocessor of the GPU, where there are windows enough


@load_once
def kernels() -> ModuleType:
    """The module of the kernels, which needs Triton."""
    from . import gpu_kernels

    return gpu_kernels


def largest_block(shared: int) -> int:
    """Bytes of the largest block of keys that the kernels fit, by those of shared memory for a program."""
    return MAX_BLOCK if shared >= SHARED else MAX_BLOCK // 2


@constant_in_graphs
def _largest_block_on(device: torch.device) -> int:
    if device.type != 'cuda':
        return MAX_BLOCK
    return largest_block(getattr(torch.cuda.get_device_properties(device), 'shared_memory_per_block_optin', 0))


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
    if (problem := why_not_on(KERNEL, device, dtype, CAPABILITY)) is not None:
        return problem
    return does_not_fit(dtype, head_dim, tokens, _largest_block_on(device))


def does_not_fit(dtype: torch.dtype, head_dim: int, tokens: int, fitting: int) -> str | None:
    """Why a window does not fit a program with blocks of at most `fitting` bytes, or None."""
    if head_dim > MAX_HEAD_DIM:
        return f'heads of {head_dim} channels, at most {MAX_HEAD_DIM} fit'
    if tokens > MAX_TOKENS:
        return f'windows of {tokens} tokens, at most {MAX_TOKENS} fit'
    block = _block(tokens) * _block(head_dim) * dtype.itemsize
    if block > fitting:
        return f'{tokens} tokens of {head_dim} channels, {dtype}, take {block // KIB} KiB; {fitting // KIB} KiB fit'
    return None


def is_slow(device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int, backward: bool) -> bool:
    """Whether a kernel does not fit the registers of a GPU, so that PyTorch's form is faster.

    Args:
        device: of `qkv`.
        dtype: of `qkv`.
        head_dim: channels of a head.
        tokens: of a window, N.
        backward: whether gradients are asked for.
    """
    return spills(capability_of(device), dtype, head_dim, tokens, backward)


def spills(capability: tuple[int, int], dtype: torch.dtype, head_dim: int, tokens: int, backward: bool) -> bool:
    """`is_slow` by compute capability: more than `SPILLED` bytes a thread lie in memory instead of registers.

    docs/gpu_kernels.md has the numbers of the compiler, by `dev/gpu_kernels.py`.
    """
    if capability == (0, 0):
        return False
    block, width = _block(tokens), _block(head_dim)
    if dtype == torch.float32:
        return block * width > 64 * 32 if backward else width > 64
    most = 32 if backward else 64  # channels of a head, where windows have more than 64 tokens
    return width > (most if block > 64 else 2 * most)


def _block(size: int) -> int:
    """The power of two that holds `size`; 16 is the least that Triton multiplies."""
    return max(16, 1 << (size - 1).bit_length())


def _tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # the newer name; where it is set, the older may refuse to be read
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32


def options_of(
    qkv: Tensor, has_padding: bool, num_heads: int, window_size: Size, shift_size: int, grid: bool, backward: bool
) -> dict[str, object]:
    """What the forward or the backward kernel is compiled for."""
    import triton.language as tl

    (_, H, W, C3), (h, w) = qkv.shape, window_size
    is_whole = H % h == 0 and W % w == 0
    block = _block(h * w)
    dtypes = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    exact = is_interpreted() and qkv.dtype == torch.bfloat16  # whose product the interpreter lacks
    return {
        'HEAD_DIM': C3 // 3 // num_heads,
        'WINDOW': h if h == w and h in EDGES else 0,
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
        # with two the next window is loaded during this one's products
        'num_stages': 1 if backward or qkv.dtype == torch.float32 else 2,
    }


def _runs(qkv: Tensor, num_heads: int, window_size: Size) -> tuple[int, tuple[int, ...]]:
    """The number of runs of windows, and what the kernels need to know of map, runs and windows."""
    B, H, W, C3 = qkv.shape
    problem = why_not(qkv.device, qkv.dtype, C3 // 3 // num_heads, window_size[0] * window_size[1])
    if problem is not None:
        raise Refused(f'window_attention_gpu: {problem}')
    rows, cols = -(-H // window_size[0]), -(-W // window_size[1])  # of windows, or of tokens of a cell
    windows = B * rows * cols
    run = -(-windows // max(1, RUNS_PER_PROCESSOR * processors(qkv.device) // num_heads)) or 1
    runs = -(-windows // run) or 1
    return runs, (H, W, rows, cols, windows, run, num_heads, *window_size, *qkv.stride()[:3])


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
    options = options_of(qkv, padding is not None, num_heads, window_size, shift_size, grid, backward=False)
    vector = qkv if padding is None else padding.contiguous()  # without padding a pointer that is not read
    tensors = qkv, bias.contiguous(), vector, out
    with torch.cuda.device_of(qkv):
        launch(kernels().forward, (num_heads, runs), tensors, (*numbers, scale), options)
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
    options = options_of(qkv, padding is not None, num_heads, window_size, shift_size, grid, backward=True)
    new_sums = torch.empty if options['BLOCK_M'] == options['BLOCK_N'] else torch.zeros
    sums_bias = new_sums(runs, *bias.shape, dtype=torch.float32, device=qkv.device)
    sums_padding = torch.empty(runs, qkv.shape[3], dtype=torch.float32, device=qkv.device)
    vector = qkv if padding is None else padding.contiguous()
    tensors = grad.contiguous(), qkv, bias.contiguous(), vector, grad_qkv, sums_bias, sums_padding
    with torch.cuda.device_of(qkv):
        launch(kernels().backward, (num_heads, runs), tensors, (*numbers, scale), options)
    if padding is None:
        grad_padding = bias.new_empty(0)
    elif options['PADDING'] == 'none':
        grad_padding = torch.zeros_like(padding)
    else:
        grad_padding = sums_padding.sum(dim=0).to(padding.dtype)
    return grad_qkv, sums_bias.sum(dim=0).to(bias.dtype), grad_padding


def _compile_ahead(
    qkv: Tensor,
    bias: Tensor,
    padding: Tensor | None,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
) -> None:
    """Compiles what follows in a network: the gradients, and the other kind of attention.

    Windows and shifted windows take turns in Swin, whose padding takes part; windows and grids in MaxViT.
    """
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (qkv, bias, padding))
    is_whole = qkv.shape[1] % window_size[0] == 0 and qkv.shape[2] % window_size[1] == 0
    head_dim, block = qkv.shape[3] // 3 // num_heads, _block(window_size[0] * window_size[1])
    other = (0, not grid) if padding is None else (0 if shift_size else min(window_size) // 2, False)

    def run() -> None:
        empty = qkv[:0]
        for kind in ((shift_size, grid), other):
            out = _forward(empty, bias, padding, num_heads, window_size, scale, *kind)
            if trained:
                _backward(out, empty, bias, padding, num_heads, window_size, scale, *kind)

    edge = window_size[0] if window_size[0] == window_size[1] else 0
    compile_ahead(KERNEL, (qkv.device, qkv.dtype, head_dim, block, edge, is_whole, padding is None, trained), run)


def _forward_in_torch(qkv, bias, padding, num_heads, window_size, scale, shift_size, grid):
    options = {'num_heads': num_heads, 'window_size': tuple(window_size), 'scale': scale, 'shift_size': shift_size}
    return attend_in_windows(qkv, bias, **options, grid=grid, padding=padding, dropout=0.0, fused=True)


def _backward_in_torch(grad, qkv, bias, padding, *options):
    grads = gradients(lambda *tensors: _forward_in_torch(*tensors, *options), (qkv, bias, padding), grad)
    grads = [None if each is None else each.contiguous() for each in grads]
    return *grads[:2], bias.new_empty(0) if padding is None else grads[2]


def _kind(qkv, bias, padding, num_heads, window_size, scale, shift_size, grid) -> tuple:
    """What of the arguments the kernels are compiled for."""
    h, w = window_size
    is_whole = qkv.shape[1] % h == 0 and qkv.shape[2] % w == 0
    precision = 'tf32' if qkv.dtype == torch.float32 and _tf32() else 'ieee'
    window = h if h == w and h in EDGES else 0, _block(h * w), qkv.shape[3] // 3 // num_heads
    types = bias.dtype, None if padding is None else padding.dtype
    return *window, shift_size, grid, is_whole, precision, *types


def _sample(qkv, bias, padding, num_heads, window_size, scale, shift_size, grid) -> tuple:
    """Random arguments of the same kind on the CPU, for two images of two by two windows, where not whole odd."""
    generator, (h, w), heads = torch.Generator().manual_seed(0), window_size, 2
    is_whole = qkv.shape[1] % h == 0 and qkv.shape[2] % w == 0
    H, W = (2 * h, 2 * w) if is_whole else (h + 1, 2 * w - 1)
    C3 = qkv.shape[3] // num_heads * heads

    def random(like: Tensor, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device='cpu').to(qkv.dtype).to(like.dtype)

    tensors = random(qkv, 2, H, W, C3), random(bias, heads, h * w, h * w), padding
    if padding is not None:
        tensors = *tensors[:2], random(padding, C3)
    return *tensors, heads, (h, w), scale, shift_size, grid


def _backward_kind(grad, *args) -> tuple:
    return _kind(*args)


def _backward_sample(grad, *args) -> tuple:
    sample = _sample(*args)
    qkv = sample[0]
    return torch.cos(qkv[..., : qkv.shape[3] // 3]), *sample


FORWARD = Launcher(KERNEL, _forward, _forward_in_torch, _kind, _sample, ('the map',))
_GRADIENTS = 'the gradient of qkv', 'the gradient of bias', 'the gradient of padding'
BACKWARD = Launcher(KERNEL, _backward, _backward_in_torch, _backward_kind, _backward_sample, _GRADIENTS)
# On the CPU the same functions serve Triton's interpreter
register_window_attention(
    'window_attention_triton',
    or_in_torch(checked(FORWARD), _forward_in_torch),
    or_in_torch(checked(BACKWARD), _backward_in_torch),
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
    by_name: bool = False,
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
        by_name: whether a person asked for the kernels: PyTorch's form never takes their place (`triton_start.call`).

    Returns:
        [B, H, W, C], dense, in the type of `qkv`.

    Raises:
        RuntimeError: where `why_not` knows a reason, or, by name, where a kernel is found not to run.
    """
    options = num_heads, tuple(window_size), scale, shift_size, grid
    if can_compile_ahead(qkv):
        _compile_ahead(qkv, bias, padding, *options)
    return WindowAttentionFunction.apply('window_attention_triton', by_name, qkv, bias, padding, *options)
