"""The ELSA operator: local aggregation with one dynamic filter a pixel and head, and static filters a channel.

    out[b, c, y, x] = sum_j (M[c, j] * A[b, g(c), j, y, x] + S[c, j]) * v[b, c, y + dy(j), x + dx(j)]

`j` runs row-major over the kernel_size x kernel_size taps, `(dy, dx)` is the tap's offset times the dilation, `g(c)`
the head of channel `c` (heads own contiguous blocks of channels). `A` is the softmax of the logits over `j`;
`M = ghost_mul ** lam` and `S = gamma * ghost_add` are the two halves of the ghost head. A tap outside the image
contributes zero and keeps its share of the softmax.

Source: Zhou et al., "ELSA: Enhanced Local Self-Attention for Vision Transformer" (arXiv 2112.12786). Every published
ELSA-Swin has lam = 0 and gamma = 1: then `M` is one, and `S` is an ordinary depthwise convolution.
"""

from torch import Tensor

from ..backends import check_devices, choose, is_named
from ..derivatives import TRANSFORMED, is_transformed
from ..torch_versions import is_compiling
from .cpu import elsa_cpu
from .cpu import why_not as cpu_why_not
from .export import elsa_export
from .gpu import elsa_gpu
from .gpu import why_not as gpu_why_not
from .reference import elsa_reference
from .taps import ELSATaps

__all__ = ['elsa', 'elsa_reference']

FORMS = ('cpu', 'torch', 'reference', 'export', 'gpu')  # on the CPU, the last one in the interpreter
FORMS_ON_GPU = ('gpu', 'torch', 'reference', 'export', 'cpu')


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
    softmax: bool = True,
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
        softmax: False where `logits` are the filters themselves, already normalised or meant as they are.
        backend: 'cpu' and 'gpu' (the kernels, for lam = 0, dilation = 1 and softmax; the latter not for float64, and on
            the CPU in Triton's interpreter, that is with TRITON_INTERPRET=1 set before Triton is imported), 'torch' (a
            loop over the taps on shifted views, any device; like the first two it keeps no more than values, filters
            and static halves), 'reference' (the formula over an unfolded `v`: kernel_size**2 times the memory),
            'export' (operators that exporters know, for inference), or 'auto', see `ops.backends`.

    Returns:
        [B, C, H, W] in the dtype of `v`. float16 and bfloat16 are accumulated in float32.

    Raises:
        ValueError: for shapes, heads, kernel sizes or backends that do not fit.
        RuntimeError: where a backend is asked for by name and cannot run; the reason is in the message.
    """
    _check(v, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, lam, gamma)
    mul = None if lam == 0 else ghost_mul if lam == 1 else ghost_mul**lam
    add = None if gamma == 0 else ghost_add if gamma == 1 else ghost_add * gamma
    plain = mul is None and dilation == 1 and softmax
    form = choose('elsa', backend, FORMS_ON_GPU if v.is_cuda else FORMS, _why_not, v, plain)
    # the meta device has shapes only, the same from every form: one node
    if form == 'cpu' or v.is_meta:
        return elsa_cpu(v, logits, add, num_heads, kernel_size)
    if form == 'gpu':
        return elsa_gpu(v, logits, add, num_heads, kernel_size, is_named('gpu', 'elsa', backend))
    # compiled for a training, tap by tap; bands of rows as of the form in PyTorch ask for the size
    if form == 'export' or (form == 'torch' and not plain and is_compiling()):
        return elsa_export(v, logits, mul, add, num_heads, kernel_size, dilation, softmax, banded=form == 'export')
    if form == 'reference':
        mul, add = (None if x is None else x.to(v.dtype) for x in (mul, add))
        options = {'num_heads': num_heads, 'kernel_size': kernel_size, 'dilation': dilation, 'softmax': softmax}
        return elsa_reference(v, logits, mul, add, **options)
    B, _, H, W = v.shape
    filters = logits.reshape(B, num_heads, kernel_size**2, H, W)
    return ELSATaps.apply(v, filters.softmax(dim=2) if softmax else filters, mul, add, dilation)


def _why_not(form: str, v: Tensor, plain: bool) -> str | None:
    """Why a form cannot run on `v`, or None. `plain`: without dilation and factors, with softmax, as in ELSA-Swin."""
    if form in ('reference', 'export'):
        return None
    if not (plain or form == 'torch'):
        return (
            'it has no static factors (lam != 0), no dilation and no filters without softmax; '
            "backend='torch' has all three"
        )
    if v.is_meta:
        return None
    if is_transformed():
        return TRANSFORMED
    if form == 'gpu':
        return gpu_why_not(v.device, v.dtype)
    if form == 'cpu':
        return cpu_why_not() if v.device.type == 'cpu' else f'it runs on the CPU, v is on {v.device}'
    return None


def _check(v, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, lam, gamma) -> None:
    check_devices(v=v, logits=logits, ghost_mul=ghost_mul, ghost_add=ghost_add)
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
