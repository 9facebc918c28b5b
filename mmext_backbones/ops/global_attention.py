"""Multi-head attention of every token of a map to all of them, without a position bias.

    out[i] = sum_j P[i, j] * v[j],    P[i, :] = softmax_j(scale * q[i] . k[j])

`i` and `j` run over the H * W tokens of a map, in every head on its own. It is `window_attention` with the map as its
one window; PyTorch's fused attention never holds P, whose size is the square of the number of tokens.
"""

import torch.nn.functional as F
from torch import Tensor

from .backends import choose
from .derivatives import TRANSFORMED, is_transformed, with_first_order

FORMS = ('torch', 'reference', 'export')


def global_attention(qkv: Tensor, *, num_heads: int, scale: float, backend: str = 'auto') -> Tensor:
    """Attend over a projected map (formula above).

    Args:
        qkv: [B, H, W, 3 * C], the channels packed as q, k, v, each head-major.
        num_heads: heads that share the C channels.
        scale: factor of q . k.
        backend: 'torch' (PyTorch's fused attention), 'reference' (the formula as it stands), 'export' (the same for
            exporters), or 'auto', see `ops.backends`.

    Returns:
        [B, H, W, C], contiguous, in the dtype of `qkv`.

    Raises:
        ValueError: for shapes, heads or backends that do not fit.
        RuntimeError: where a backend is asked for by name and cannot run; the reason is in the message.
    """
    if qkv.dim() != 4 or num_heads < 1 or qkv.shape[3] % (3 * num_heads) or not qkv.is_floating_point():
        raise ValueError(
            f'qkv has shape {tuple(qkv.shape)} and dtype {qkv.dtype}: expected [B, H, W, 3 * C] of a floating dtype, '
            f'C a multiple of num_heads={num_heads}'
        )
    form = choose('global_attention', backend, FORMS, _why_not)
    B, H, W, C3 = qkv.shape
    heads = qkv.reshape(B, H * W, 3, num_heads, C3 // 3 // num_heads)
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # [B, num_heads, H * W, head_dim]
    if form == 'torch':
        out = with_first_order(F.scaled_dot_product_attention(q, k, v, scale=scale))
    else:
        out = ((scale * q) @ k.transpose(-1, -2)).softmax(dim=-1) @ v
    return out.transpose(1, 2).reshape(B, H, W, C3 // 3).contiguous()


def _why_not(form: str) -> str | None:
    return TRANSFORMED if form == 'torch' and is_transformed() else None
