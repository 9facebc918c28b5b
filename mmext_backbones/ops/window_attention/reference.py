"""Window and grid attention in PyTorch's operators: the formula as it stands, and its fastest form."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..caching import cache_tensors
from ..partition import Size, grid_merge, grid_partition, padding_mask, window_merge, window_partition
from ..torch_versions import has_half_products

MASKED = -100.0  # what the authors add to the logit of a pair from different regions; not -inf


def attend_in_windows(
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
        bias: [num_heads, N or 1, N].
        fused: PyTorch's fastest form of the attention instead of the formula; else as in `window_attention`.
    """
    B, H, W, C3 = qkv.shape
    mask = None
    if padding is None:
        mask = padding_mask((H, W), window_size, grid, qkv.device, shift_size)
    else:
        qkv = fill_up(qkv, padding.to(qkv.dtype), window_size)
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
    out = out.to(qkv.dtype).transpose(1, 2).reshape(B, windows.shape[1], N, C3 // 3)

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
    logits = bias.expand(heads, N, N).repeat(groups, 1, 1)  # the products are added in place
    logits.baddbmm_(q.reshape(shape), k.reshape(shape).mT, alpha=scale)
    logits = logits.view(groups, heads, N, N)
    if mask is not None:
        logits.view(-1, len(mask), heads, N, N).add_(mask.unsqueeze(1))
    return F.dropout(logits.softmax(dim=-1), dropout) @ v


def fill_up(x: Tensor, padding: Tensor, window_size: Size) -> Tensor:
    """[B, H, W, C] with tokens `padding` [C] at the right and at the bottom, up to whole windows."""
    B, H, W, C = x.shape
    bottom, right = -H % window_size[0], -W % window_size[1]
    if right:
        x = torch.cat([x, padding.expand(B, H, right, C)], dim=2)
    if bottom:
        x = torch.cat([x, padding.expand(B, bottom, W + right, C)], dim=1)
    return x


@cache_tensors(16, lambda window_size, *_: math.prod(window_size) ** 2)
def relative_position_index(window_size: Size, device: torch.device | str = 'cpu') -> Tensor:
    """Place in the bias table of every token pair, query minus key: int64 [N, N], N = window_h * window_w.

    The table is row-major over (2 * window_h - 1, 2 * window_w - 1) offsets. The transpose is key minus query. Kept
    from call to call, see `caching`: no module holds it as a buffer, which no checkpoint would fill.
    """
    h, w = window_size
    y, x = (torch.arange(edge, device=device) for edge in window_size)
    rows, columns = (y[:, None] - y + h - 1), (x[:, None] - x + w - 1)  # [h, h] and [w, w], offsets along the axes
    return (rows[:, None, :, None] * (2 * w - 1) + columns[:, None, :]).reshape(h * w, h * w)


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
