"""Multi-head attention inside the windows of a map, or inside its grid groups.

    out[i] = sum_j P[i, j] * v[j],    P[i, :] = softmax_j(scale * q[i] . k[j] + bias[i, j] + mask[i, j])

`i` and `j` run over the N tokens of one window (or group), row-major, in every head on its own. The map is filled up
at the right and at the bottom to whole windows, rolled by `-shift_size` along both axes, cut into windows, attended,
put together, rolled back and cropped. `mask` is `MASKED` where only the roll brought two tokens together, and -inf for
a key of the padding where the padding has no values of its own.

The fast backends do none of the moving: they find the tokens of a window by index arithmetic.

Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.2; Tu et al., "MaxViT" (arXiv 2204.01697),
section 3.2.
"""

import torch
from torch import Tensor

from ..backends import check_devices, choose, is_named
from ..derivatives import TRANSFORMED, is_transformed
from ..partition import Size
from .cpu import why_not as cpu_why_not
from .cpu import window_attention_cpu
from .export import window_attention_export
from .reference import attend_in_windows, relative_position_index, shifted_window_mask

__all__ = ['relative_position_index', 'shifted_window_mask', 'window_attention']

FORMS = ('cpu', 'gpu', 'torch', 'reference', 'export')
FORMS_WHERE_SLOW = ('cpu', 'torch', 'gpu', 'reference', 'export')  # where the kernels do not fit the registers


def window_attention(
    qkv: Tensor,
    bias: Tensor | None,
    *,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int = 0,
    shift_single_window: bool = True,
    grid: bool = False,
    padding: Tensor | None = None,
    dropout: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Attend inside (shifted) windows or grid groups of a projected map (formula above).

    Args:
        qkv: [B, H, W, 3 * C] for any H and W and in any memory format, the channels packed as q, k, v, each head-major.
        bias: [num_heads, N, N], query by key; N = window_h * window_w. None: no bias.
        num_heads: heads that share the C channels.
        window_size: (window_h, window_w) in tokens; with `grid` the numbers of cells along the axes.
        scale: factor of q . k.
        shift_size: roll of the map in tokens before it is cut, less than a window; 0 for plain windows.
        shift_single_window: roll also a map that is no larger than a window.
        grid: attend inside grid groups (`partition.grid_partition`) instead of windows.
        padding: [3 * C], what a token of the padding has as q, k and v: it takes part. None: nobody attends to it.
        dropout: probability of dropping an attention weight; 'torch' and 'reference' only.
        backend: 'cpu' and 'gpu' (the kernels, which keep nothing for the backward pass but their inputs), 'torch' (any
            device: windows cut out, PyTorch's products or its fused attention), 'reference' (the formula as it stands),
            'export', or 'auto', see `ops.backends`.

    Returns:
        [B, H, W, C], contiguous, in the dtype of `qkv`. 'cpu' computes float16 and bfloat16 in float32.

    Raises:
        ValueError: for shapes, heads, sizes or backends that do not fit.
        RuntimeError: where a backend is asked for by name and cannot run; the reason is in the message.
    """
    _check(qkv, bias, num_heads, window_size, shift_size, grid, padding, dropout)
    if bias is None:
        bias = qkv.new_zeros(num_heads, 1, window_size[0] * window_size[1])  # one row for every query
    form = choose('window_attention', backend, _forms(qkv, bias, padding), _why_not, qkv, bias, padding, dropout)
    options = {'num_heads': num_heads, 'window_size': window_size, 'scale': scale, 'grid': grid, 'padding': padding}
    if form == 'export' and not qkv.is_meta:  # which does not ask for the size
        options |= {'shift_size': shift_size, 'shift_single_window': shift_single_window}
        return window_attention_export(qkv, bias, **options)
    if not (shift_single_window or qkv.shape[1] > window_size[0] or qkv.shape[2] > window_size[1]):
        shift_size = 0
    options['shift_size'] = shift_size
    if qkv.is_meta or form == 'cpu':  # the meta device has shapes only, the same from every form: one node
        return window_attention_cpu(qkv, bias, **options)
    if form == 'gpu':
        from .gpu import window_attention_gpu

        N = bias.shape[2]
        by_name = is_named('gpu', 'window_attention', backend)
        return window_attention_gpu(qkv, bias.expand(num_heads, N, N), **options, by_name=by_name)
    return attend_in_windows(qkv, bias, **options, dropout=dropout, fused=form == 'torch')


def _forms(qkv: Tensor, bias: Tensor, padding: Tensor | None) -> tuple[str, ...]:
    """The forms, the fastest first."""
    if not qkv.is_cuda:
        return FORMS
    from .gpu import is_slow

    num_heads, _, N = bias.shape
    trained = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (qkv, bias, padding))
    return FORMS_WHERE_SLOW if is_slow(qkv.device, qkv.dtype, qkv.shape[3] // 3 // num_heads, N, trained) else FORMS


def _why_not(form: str, qkv: Tensor, bias: Tensor, padding: Tensor | None, dropout: float) -> str | None:
    """Why a form cannot run on these arguments, or None."""
    if qkv.is_meta or form in ('torch', 'reference'):
        return None
    if dropout:
        return 'it has no dropout'
    if form == 'export':
        return None
    if is_transformed():
        return TRANSFORMED
    device = 'cpu' if form == 'cpu' else 'cuda'
    if qkv.device.type != device:
        return f'it runs on {device}, qkv is on {qkv.device}'
    if form == 'cpu':
        return cpu_why_not()
    from .gpu import why_not as gpu_why_not

    num_heads, _, N = bias.shape
    return gpu_why_not(qkv.device, qkv.dtype, qkv.shape[3] // 3 // num_heads, N)


def _check(qkv, bias, num_heads, window_size, shift_size, grid, padding, dropout) -> None:
    check_devices(qkv=qkv, bias=bias, padding=padding)
    if qkv.dim() != 4 or num_heads < 1 or qkv.shape[3] % (3 * num_heads):
        raise ValueError(
            f'qkv has shape {tuple(qkv.shape)}: expected [B, H, W, 3 * C] with C a multiple of num_heads={num_heads}'
        )
    if not qkv.is_floating_point():
        raise ValueError(f'qkv has dtype {qkv.dtype}: expected a floating one')
    if len(window_size) != 2 or min(window_size) < 1:
        raise ValueError(f'window_size={tuple(window_size)}: expected a height and a width of at least 1')
    if not 0 <= shift_size < min(window_size):
        raise ValueError(f'shift_size={shift_size}: expected from 0 up to less than window_size={tuple(window_size)}')
    if grid and shift_size:
        raise ValueError(f'shift_size={shift_size}: expected 0 with grid=True')
    N = window_size[0] * window_size[1]
    if bias is not None and tuple(bias.shape) != (num_heads, N, N):
        raise ValueError(f'bias has shape {tuple(bias.shape)}: expected {(num_heads, N, N)}')
    if padding is not None and tuple(padding.shape) != (qkv.shape[3],):
        raise ValueError(f'padding has shape {tuple(padding.shape)}: expected {(qkv.shape[3],)}')
    if not 0 <= dropout < 1:
        raise ValueError(f'dropout={dropout}: expected from 0 up to less than 1')
