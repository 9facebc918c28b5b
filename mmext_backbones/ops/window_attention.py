"""Multi-head attention inside windows, with a relative position bias and, for shifted windows, a region mask.

Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.2.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -100.0  # what the authors add to the logit of a pair from different regions; not -inf


def window_attention(
    qkv: Tensor, bias: Tensor, mask: Tensor | None, *, num_heads: int, scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(scale * q @ k^T + bias + mask) @ v in every window.

    Args:
        qkv: [B, windows, N, 3 * C], the channels packed as q, k, v, each head-major.
        bias: [num_heads, N, N], query by key.
        mask: [windows, N, N] or, for keys alone, [windows, 1, N] to be added, or None.
        num_heads: heads that share the C channels.
        scale: factor of q @ k^T.
        dropout: probability of dropping an attention weight.

    Returns:
        [B, windows, N, C].
    """
    B, windows, N, C3 = qkv.shape
    q, k, v = qkv.view(B * windows, N, 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)  # [B * windows, heads, N, d]
    bias = bias.to(q.dtype)
    if q.is_cuda:
        if mask is not None:
            bias = (bias + mask.to(q.dtype).unsqueeze(1)).repeat(B, 1, 1, 1)  # [B * windows, heads, N, N]
        out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=scale)
    else:
        # PyTorch's fused CPU kernel refuses a bias that needs a gradient and loses to plain products at N = 49.
        logits = bias.repeat(B * windows, 1, 1)  # the products are added in place
        logits.baddbmm_(q.reshape(-1, N, q.shape[-1]), k.reshape(-1, N, k.shape[-1]).mT, alpha=scale)
        if mask is not None:
            logits = logits.view(B, windows, num_heads, N, N).add_(mask.to(q.dtype).unsqueeze(1))
        attn = F.dropout(logits.view(-1, num_heads, N, N).softmax(dim=-1), dropout)
        out = attn @ v
    return out.transpose(1, 2).reshape(B, windows, N, C3 // 3)


def relative_position_index(window_size: tuple[int, int]) -> Tensor:
    """Place in the bias table of every token pair, query minus key: int64 [N, N], N = window_h * window_w.

    The table is row-major over (2 * window_h - 1, 2 * window_w - 1) offsets. The transpose is key minus query.
    """
    h, w = window_size
    tokens = torch.cartesian_prod(torch.arange(h), torch.arange(w))  # [N, 2]: row and column of a token
    offsets = tokens[:, None] - tokens + torch.tensor([h - 1, w - 1])  # [N, N, 2]
    return offsets[..., 0] * (2 * w - 1) + offsets[..., 1]


@lru_cache(maxsize=16)
def shifted_window_mask(
    padded_size: tuple[int, int], window_size: int, shift_size: int, device: torch.device
) -> Tensor:
    """What keeps tokens apart that only the roll brought together: float32 [windows, N, N], 0 or `MASKED`.

    The rolled map falls into 3 x 3 regions; a pair from two regions does not attend. Cached by size; a map of
    [Hp, Wp] takes Hp * Wp * window_size**2 floats, and the cache keeps the 16 used last (four image sizes of a Swin).
    """
    regions = torch.zeros(padded_size, device=device)
    for axis, size in enumerate(padded_size):
        # 0 for the rows before the last window, 1 for those of it that stay, 2 for those that were rolled in
        position = torch.arange(size, device=device)
        part = (position >= size - window_size).float() + (position >= size - shift_size).float()
        regions += part.view(-1, 1) * 3 if axis == 0 else part
    rows, cols = padded_size[0] // window_size, padded_size[1] // window_size
    regions = regions.view(rows, window_size, cols, window_size).transpose(1, 2).reshape(rows * cols, -1)
    return (regions[:, :, None] != regions[:, None, :]) * MASKED
