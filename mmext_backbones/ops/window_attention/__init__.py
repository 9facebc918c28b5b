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

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..caching import cache_tensors
from ..dispatcher import chosen_backend
from ..partition import Size, grid_merge, grid_partition, padding_mask, window_merge, window_partition
from ..torch_versions import has_half_products
from .cpu import why_not, window_attention_compiled
from .export import window_attention_gathered

BACKENDS = ('auto', 'compiled', 'triton', 'torch', 'gathered', 'reference')
ENVIRONMENT = 'MMEXT_WINDOW_ATTENTION_BACKEND'  # what 'auto' stands for, where it is set
MASKED = -100.0  # what the authors add to the logit of a pair from different regions; not -inf


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    *,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int = 0,
    grid: bool = False,
    padding: Tensor | None = None,
    dropout: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Attend inside (shifted) windows or grid groups of a projected map (formula above).

    Args:
        qkv: [B, H, W, 3 * C] for any H and W and in any memory format, the channels packed as q, k, v, each head-major.
        bias: [num_heads, N, N], query by key; N = window_h * window_w.
        num_heads: heads that share the C channels.
        window_size: (window_h, window_w) in tokens; with `grid` the numbers of cells along the axes.
        scale: factor of q . k.
        shift_size: roll of the map in tokens before it is cut, less than a window; 0 for plain windows.
        grid: attend inside grid groups (`partition.grid_partition`) instead of windows.
        padding: [3 * C], what a token of the padding has as q, k and v: it takes part. None: nobody attends to it.
        dropout: probability of dropping an attention weight; 'torch' and 'reference' only.
        backend: 'compiled' (CPU, needs a C compiler at its first use on a machine), 'triton' (CUDA), 'torch' (any
            device: windows cut out, PyTorch's products or its fused attention), 'gathered' (operators that exporters
            know, at sizes they need not know; no dropout), 'reference' (the formula as it stands) or 'auto': what the
            environment variable MMEXT_WINDOW_ATTENTION_BACKEND names, else 'compiled', 'triton' or 'torch', the first
            that runs. 'compiled' saves nothing for the backward pass but its inputs.

    Returns:
        [B, H, W, C], contiguous, in the dtype of `qkv`. 'compiled' computes float16 and bfloat16 in float32.

    Raises:
        ValueError: for shapes, heads, sizes or backends that do not fit.
        RuntimeError: where a backend is asked for by name and cannot run; the reason is in the message.
    """
    if backend == 'auto':
        backend = chosen_backend(ENVIRONMENT)
    _check(qkv, bias, num_heads, window_size, shift_size, grid, padding, dropout, backend)
    options = {
        'num_heads': num_heads,
        'window_size': window_size,
        'scale': scale,
        'shift_size': shift_size,
        'grid': grid,
        'padding': padding,
    }
    if qkv.is_meta:  # shapes only, the same from every backend: one node of the dispatcher
        return window_attention_compiled(qkv, bias, **options)
    if backend == 'auto':
        backend = 'torch' if dropout else _fastest(qkv, bias)
    if backend in ('torch', 'reference'):
        return _in_windows(qkv, bias, **options, dropout=dropout, fused=backend == 'torch')
    reason = 'it has no dropout' if dropout else None if backend == 'gathered' else _why_not(backend, qkv, bias)
    if reason is not None:
        raise RuntimeError(f'backend={backend!r}: {reason}')
    if backend == 'gathered':
        return window_attention_gathered(qkv, bias, **options, masked=MASKED)
    if backend == 'compiled':
        return window_attention_compiled(qkv, bias, **options)
    from .gpu import window_attention_triton

    return window_attention_triton(qkv, bias, **options)


def _fastest(qkv: Tensor, bias: Tensor) -> str:
    for name in ('compiled', 'triton'):
        if _why_not(name, qkv, bias) is None:
            return name
    return 'torch'


def _why_not(backend: str, qkv: Tensor, bias: Tensor) -> str | None:
    """Why 'compiled' or 'triton' cannot take `qkv`, or None."""
    device = 'cpu' if backend == 'compiled' else 'cuda'
    if qkv.device.type != device:
        return f'it runs on {device}, qkv is on {qkv.device}'
    if backend == 'compiled':
        return why_not()
    try:
        from . import gpu as triton
    except ImportError as error:
        return str(error)
    num_heads, N, _ = bias.shape
    return triton.why_not(qkv.device, qkv.dtype, qkv.shape[3] // 3 // num_heads, N)


def _in_windows(
    qkv: Tensor,
    bias: Tensor,
    *,
    num_heads: int,
    window_size: Size,
    scale: float,
    shift_size: int,
    grid: bool,
    padding: Tensor | None,
    dropout: float,
    fused: bool,
) -> Tensor:
    """The steps as they stand: fill up, roll and cut, attend, put together and crop.

    Args:
        fused: PyTorch's fastest form of the attention instead of the formula; else as in `window_attention`.
    """
    B, H, W, C3 = qkv.shape
    mask = None
    if padding is None:
        mask = padding_mask((H, W), window_size, grid, qkv.device, shift_size)
    else:
        qkv = _fill_up(qkv, padding.to(qkv.dtype), window_size)
    if grid:
        windows, padded_size = grid_partition(qkv, window_size)
    else:
        windows, padded_size = window_partition(qkv, window_size, shift_size)  # [B, windows, N, 3 * C]
    if shift_size:
        regions = shifted_window_mask(padded_size, window_size, shift_size, qkv.device)
        mask = regions if mask is None else regions + mask

    N = windows.shape[2]
    heads = windows.reshape(-1, N, 3, num_heads, C3 // 3 // num_heads)  # of a single row of cells no view
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # [B * windows, num_heads, N, head_dim]
    if q.dtype == torch.float16 and q.device.type == 'cpu' and not has_half_products():
        q, k, v = q.float(), k.float(), v.float()
    attend = _attend_fused if fused else attend_reference
    out = attend(q, k, v, bias.to(q.dtype), None if mask is None else mask.to(q.dtype), scale, dropout)
    out = out.to(qkv.dtype).transpose(1, 2).reshape(B, -1, N, C3 // 3)

    out = grid_merge(out, window_size, padded_size) if grid else window_merge(out, window_size, padded_size, shift_size)
    return out[:, :H, :W].contiguous()


def attend_reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float, dropout: float = 0.0
) -> Tensor:
    """The formula: q, k, v [B * windows, heads, N, d], bias [heads, N, N], mask [windows, N or 1, N] or None."""
    logits = scale * (q @ k.mT) + bias
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask.unsqueeze(1)).flatten(0, 1)
    return F.dropout(logits.softmax(dim=-1), dropout) @ v


def _attend_fused(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """`attend_reference` in PyTorch's fastest form."""
    if q.is_cuda:
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(len(q) // len(mask), 1, 1, 1)  # [B * windows, heads, N, N]
        return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=scale)
    # PyTorch's fused CPU kernel refuses a bias that needs a gradient and loses to plain products at N = 49.
    (groups, heads, N, _), shape = q.shape, (-1, *q.shape[2:])
    logits = bias.repeat(groups, 1, 1)  # the products are added in place
    logits.baddbmm_(q.reshape(shape), k.reshape(shape).mT, alpha=scale)
    logits = logits.view(groups, heads, N, N)
    if mask is not None:
        logits.view(-1, len(mask), heads, N, N).add_(mask.unsqueeze(1))
    return F.dropout(logits.softmax(dim=-1), dropout) @ v


def _fill_up(x: Tensor, padding: Tensor, window_size: Size) -> Tensor:
    """[B, H, W, C] with tokens `padding` [C] at the right and at the bottom, up to whole windows."""
    B, H, W, C = x.shape
    bottom, right = -H % window_size[0], -W % window_size[1]
    if right:
        x = torch.cat([x, padding.expand(B, H, right, C)], dim=2)
    if bottom:
        x = torch.cat([x, padding.expand(B, bottom, W + right, C)], dim=1)
    return x


def relative_position_index(window_size: Size) -> Tensor:
    """Place in the bias table of every token pair, query minus key: int64 [N, N], N = window_h * window_w.

    The table is row-major over (2 * window_h - 1, 2 * window_w - 1) offsets. The transpose is key minus query.
    """
    h, w = window_size
    tokens = torch.cartesian_prod(torch.arange(h), torch.arange(w))  # [N, 2]: row and column of a token
    offsets = tokens[:, None] - tokens + torch.tensor([h - 1, w - 1])  # [N, N, 2]
    return offsets[..., 0] * (2 * w - 1) + offsets[..., 1]


@cache_tensors(16, lambda padded_size, window_size, *_: math.prod((*padded_size, *window_size)))
def shifted_window_mask(padded_size: Size, window_size: Size, shift_size: int, device: torch.device) -> Tensor:
    """What keeps tokens apart that only the roll brought together: float32 [windows, N, N], 0 or `MASKED`.

    The rolled map falls into 3 x 3 regions; a pair from two regions does not attend. A map of [Hp, Wp]
    takes Hp * Wp * N floats; kept from call to call, see `caching`: for four image sizes of a Swin.
    """
    regions = torch.zeros(1, *padded_size, 1, device=device)
    for axis, (size, window) in enumerate(zip(padded_size, window_size, strict=True)):
        # 0 for the rows before the last window, 1 for those of it that stay, 2 for those that were rolled in
        position = torch.arange(size, device=device)
        part = (position >= size - window).float() + (position >= size - shift_size).float()
        regions += part.view(-1, 1, 1) * 3 if axis == 0 else part.view(-1, 1)
    regions = window_partition(regions, window_size)[0][0, :, :, 0]  # [windows, N]
    return (regions[:, :, None] != regions[:, None, :]) * MASKED


def _check(qkv, bias, num_heads, window_size, shift_size, grid, padding, dropout, backend) -> None:
    if backend not in BACKENDS:
        raise ValueError(f'backend={backend!r}: expected one of {", ".join(BACKENDS)}')
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
    if tuple(bias.shape) != (num_heads, N, N):
        raise ValueError(f'bias has shape {tuple(bias.shape)}: expected {(num_heads, N, N)}')
    if padding is not None and tuple(padding.shape) != (qkv.shape[3],):
        raise ValueError(f'padding has shape {tuple(padding.shape)}: expected {(qkv.shape[3],)}')
    if not 0 <= dropout < 1:
        raise ValueError(f'dropout={dropout}: expected from 0 up to less than 1')
