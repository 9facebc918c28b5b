"""Outlook attention: every place of a small window gathers from all places of it, by weights that one pixel gives.

    out[p] = sum_{n, i: place i of window n is p} sum_j A[n, g, i, j] * v[place j of window n]
    A[n, g, i, :] = softmax_j(scale * logits[n, g, i, j])

Window `n` = (y, x) of ceil(H / stride) x ceil(W / stride) windows has the pixel (stride * y, stride * x) in its middle
and kernel_size x kernel_size places, row-major, which `i` and `j` run over; `g` is the head. Windows overlap, and what
they give to a pixel is added, not averaged. Places outside the map have zeros as values and keep their share of the
softmax; what they would gather is dropped.

Source: Yuan et al., "VOLO: Vision Outlooker for Visual Recognition" (arXiv 2106.13112), section 3.1, and the authors'
code.
"""

from torch import Tensor

from ..backends import check_devices, choose
from ..derivatives import TRANSFORMED, is_transformed
from .cpu import outlook_cpu
from .cpu import why_not as cpu_why_not
from .export import outlook_export
from .reference import outlook_reference
from .windows import OutlookWindows

__all__ = ['outlook', 'outlook_reference']

FORMS = ('cpu', 'torch', 'reference', 'export')


def outlook(
    v: Tensor,
    logits: Tensor,
    *,
    num_heads: int,
    kernel_size: int = 3,
    stride: int = 2,
    scale: float = 1.0,
    backend: str = 'auto',
) -> Tensor:
    """Apply outlook attention (formula above).

    Args:
        v: values, [B, H, W, C] for any H and W; heads own contiguous blocks of channels.
        logits: of every window, [B, ceil(H / stride), ceil(W / stride), num_heads * kernel_size**4], the last axis
            packed as [num_heads, places i, places j].
        num_heads: heads that share `v`'s channels.
        kernel_size: odd edge of a window in pixels of the map.
        stride: pixels between windows, at most `kernel_size`.
        scale: factor of the logits.
        backend: 'cpu' (the kernel) and 'torch' (windows gathered from views and multiplied, any device), which keep
            values and weights for the backward pass; 'reference' (PyTorch's unfold and fold), 'export' (operators that
            exporters know, for inference), or 'auto', see `ops.backends`.

    Returns:
        [B, H, W, C] in the dtype of `v`. 'cpu' computes float16 and bfloat16 in float32.

    Raises:
        ValueError: for shapes, heads, kernel sizes, strides or backends that do not fit.
        RuntimeError: where a backend is asked for by name and cannot run; the reason is in the message.
    """
    _check(v, logits, num_heads, kernel_size, stride)
    form = choose('outlook', backend, FORMS, _why_not, v)
    places = kernel_size**2
    attn = (logits * scale).unflatten(3, (num_heads, places, places)).softmax(dim=5).to(v.dtype)
    if v.is_meta or form == 'cpu':  # the meta device has shapes only, the same from every form: one node
        return outlook_cpu(v, attn, kernel_size, stride)
    if form == 'reference':
        return outlook_reference(v, attn, kernel_size, stride)
    if form == 'export':
        return outlook_export(v, attn, kernel_size, stride)
    return OutlookWindows.apply(v, attn, kernel_size, stride)


def _why_not(form: str, v: Tensor) -> str | None:
    """Why a form cannot run on `v`, or None."""
    if v.is_meta or form in ('reference', 'export'):
        return None
    if is_transformed():
        return TRANSFORMED
    if form == 'cpu':
        return cpu_why_not() if v.device.type == 'cpu' else f'it runs on the CPU, v is on {v.device}'
    return None


def _check(v: Tensor, logits: Tensor, num_heads: int, kernel_size: int, stride: int) -> None:
    check_devices(v=v, logits=logits)
    if v.dim() != 4 or num_heads < 1 or v.shape[3] % num_heads:
        raise ValueError(
            f'v has shape {tuple(v.shape)}: expected [B, H, W, C] with C a multiple of num_heads={num_heads}'
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size={kernel_size}: expected an odd number of at least 1')
    if not 1 <= stride <= kernel_size:
        raise ValueError(f'stride={stride}: expected from 1 up to kernel_size={kernel_size}')
    B, H, W, _ = v.shape
    expected = (B, (H - 1) // stride + 1, (W - 1) // stride + 1, num_heads * kernel_size**4)  # as `mean_pool` has it
    if tuple(logits.shape) != expected:
        raise ValueError(f'logits have shape {tuple(logits.shape)}: expected {expected}')
