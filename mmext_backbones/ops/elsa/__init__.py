"""The ELSA operator: local aggregation with one dynamic filter a pixel and head, and static filters a channel.

    out[b, c, y, x] = sum_j (M[c, j] * A[b, g(c), j, y, x] + S[c, j]) * v[b, c, y + dy(j), x + dx(j)]

`j` runs row-major over the kernel_size x kernel_size taps, `(dy, dx)` is the tap's offset times the dilation, `g(c)`
the head of channel `c` (heads own contiguous blocks of channels). `A` is the softmax of the logits over `j`;
`M = ghost_mul ** lam` and `S = gamma * ghost_add` are the two halves of the ghost head. A tap outside the image
contributes zero and keeps its share of the softmax.

Source: Zhou et al., "ELSA: Enhanced Local Self-Attention for Vision Transformer" (arXiv 2112.12786). Every published
ELSA-Swin has lam = 0 and gamma = 1: then `M` is one, and `S` is an ordinary depthwise convolution.
"""

import torch.nn.functional as F
from torch import Tensor

from ..dispatcher import chosen_backend
from ..torch_versions import is_compiling
from .cpu import elsa_compiled
from .cpu import why_not as cpu_why_not
from .export import elsa_shifts
from .gpu import elsa_triton
from .gpu import why_not as gpu_why_not
from .taps import ELSATaps

BACKENDS = ('auto', 'compiled', 'triton', 'taps', 'shifts', 'reference', 'node')
ENVIRONMENT = 'MMEXT_ELSA_BACKEND'  # what 'auto' stands for, where it is set


def elsa(
    v: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    lam: float = 0.0,
    gamma: float = 1.0,
    backend: str = 'auto',
) -> Tensor:
    """Apply the ELSA operator (formula above).

    Args:
        v: values, [B, C, H, W] in any memory format; C is a multiple of `num_heads`.
        logits: filter logits before the softmax, [B, num_heads * kernel_size**2, H, W], head-major.
        ghost_mul: static factors [C, kernel_size, kernel_size]. Unused where `lam` is 0. A fractional `lam` of a
            negative factor is NaN, as in the paper's formula.
        ghost_add: static summands [C, kernel_size, kernel_size]. Unused where `gamma` is 0.
        num_heads: heads that share `v`'s channels.
        kernel_size: odd edge of the square neighbourhood, in pixels of the map.
        dilation: distance between neighbouring taps, in pixels of the map.
        lam: exponent of the multiplicative half.
        gamma: factor of the additive half.
        backend: 'compiled' (CPU, needs a C compiler at its first use on a machine), 'triton' (CUDA, needs Triton; not
            for float64; runs on the CPU in Triton's interpreter, that is with TRITON_INTERPRET=1 set before Triton is
            imported), 'taps' (a loop over the taps on shifted views, any device; like the first two it saves no more
            than values, filters and static halves), 'shifts' (the same loop in operators that exporters know, for
            inference), 'node' (the dispatcher's operator without a look at the kernel, for exporters that translate
            it), 'reference' (the formula over an unfolded `v`: kernel_size**2 times the memory) or 'auto': what the
            environment variable MMEXT_ELSA_BACKEND names, else 'compiled' for tensors on the CPU and 'triton' for those
            on CUDA devices where they can run, else 'taps'.

    Returns:
        [B, C, H, W] in the dtype of `v`. float16 and bfloat16 are accumulated in float32.

    Raises:
        ValueError: for shapes, heads, kernel sizes or backends that do not fit.
        RuntimeError: where 'compiled', 'triton' or 'node' is asked for and cannot run; the reason is in the message.
    """
    if backend == 'auto':
        backend = chosen_backend(ENVIRONMENT)
    _check(v, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, lam, gamma, backend)
    mul = None if lam == 0 else ghost_mul if lam == 1 else ghost_mul**lam
    add = None if gamma == 0 else ghost_add if gamma == 1 else ghost_add * gamma
    if v.is_meta:  # shapes only, the same from every backend: one node of the dispatcher
        return elsa_compiled(v, logits, mul, add, num_heads, kernel_size, dilation)
    if backend == 'reference':
        mul, add = (None if x is None else x.to(v.dtype) for x in (mul, add))
        return elsa_reference(v, logits, mul, add, num_heads=num_heads, kernel_size=kernel_size, dilation=dilation)

    if backend == 'auto':
        backend = 'compiled' if v.device.type == 'cpu' else 'triton'
        if _why_not(backend, v) is not None:
            backend = 'taps'
    if backend == 'shifts':
        return elsa_shifts(v, logits, mul, add, num_heads, kernel_size, dilation)
    if backend == 'taps':
        B, _, H, W = v.shape
        attn = logits.reshape(B, num_heads, kernel_size**2, H, W).softmax(dim=2)
        return ELSATaps.apply(v, attn, mul, add, dilation)
    reason = _why_not(backend, v)
    if reason is not None:
        raise RuntimeError(f'backend={backend!r}: {reason}')
    run = elsa_triton if backend == 'triton' else elsa_compiled
    return run(v, logits, mul, add, num_heads, kernel_size, dilation)


def _why_not(backend: str, v: Tensor) -> str | None:
    """Why 'compiled', 'triton' or 'node' cannot run on `v`, or None."""
    if backend == 'node':
        return None if is_compiling() else 'it is for recorded networks'
    if backend == 'triton':
        return gpu_why_not(v.device, v.dtype)
    return cpu_why_not() if v.device.type == 'cpu' else f'it runs on the CPU, v is on {v.device}'


def elsa_reference(
    v: Tensor,
    logits: Tensor,
    mul: Tensor | None,
    add: Tensor | None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    """The formula as it stands, for reading and as the oracle of the tests; shapes as in `elsa`, no checks.

    `mul` and `add` [C, k, k] are `M` and `S` of the formula; None stands for ones and zeros.
    """
    B, C, H, W = v.shape
    taps = kernel_size**2
    neighbours = F.unfold(v, kernel_size, dilation=dilation, padding=dilation * (kernel_size // 2))
    neighbours = neighbours.reshape(B, num_heads, C // num_heads, taps, H, W)
    filters = logits.reshape(B, num_heads, 1, taps, H, W).softmax(dim=3)
    if mul is not None:
        filters = filters * mul.reshape(num_heads, -1, taps, 1, 1)
    if add is not None:
        filters = filters + add.reshape(num_heads, -1, taps, 1, 1)
    return (filters * neighbours).sum(dim=3).reshape(B, C, H, W)


def _check(v, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, lam, gamma, backend) -> None:
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r}: expected one of {", ".join(BACKENDS)}')
    if v.dim() != 4 or v.shape[1] % num_heads:
        raise ValueError(
            f'v has shape {tuple(v.shape)}: expected [B, C, H, W] with C a multiple of num_heads={num_heads}'
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size={kernel_size}: expected an odd number of at least 1')
    if dilation < 1:
        raise ValueError(f'dilation={dilation}: expected at least 1')
    B, C, H, W = v.shape
    expected = (B, num_heads * kernel_size**2, H, W)
    if tuple(logits.shape) != expected:
        raise ValueError(f'logits have shape {tuple(logits.shape)}: expected {expected}')
    for name, ghost, power in (('ghost_mul', ghost_mul, lam), ('ghost_add', ghost_add, gamma)):
        if power == 0:
            continue
        shape = None if ghost is None else tuple(ghost.shape)
        if shape != (C, kernel_size, kernel_size):
            raise ValueError(f'{name} has shape {shape}: expected {(C, kernel_size, kernel_size)}')
