"""Computes the attention weights of one token, from the weights and the input of its module.

The modules never hold these weights: their operators are fused. Here the formulas of `ops.window_attention`, `ops.elsa`
and `ops.outlook` are followed as they stand, for a single query, down to the output of the module, so that a picture of
the weights can be held against what the network computed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..layers import ELSAAttention, GlobalAttention, OutlookAttention, PartitionAttention, WindowAttention
from ..ops import outlook
from ..ops.partition import grid_partition, window_partition
from ..ops.window_attention import shifted_window_mask
from .networks import Call

__all__ = ['ATTENTIONS', 'TokenAttention', 'attention_name', 'elsa_filters', 'token_attention']

ATTENTIONS = (WindowAttention, PartitionAttention, ELSAAttention, OutlookAttention, GlobalAttention)


@dataclass
class TokenAttention:
    """What one token attends to.

    Attributes:
        weights: [num_heads, H, W], 0 where it does not look.
        attended: Tokens of the map that it can look at, bool [H, W].
        beyond: Weight on padding, or on taps outside the map, [num_heads]; with `weights` it sums to 1. (In
            outlook attention each of the windows that hold the token gives it as much; these are their means.)
        error: Largest difference between the module's output at the token and the weighted values after the
            projection, in units of how much the projected values differ from token to token: where all are alike, any
            weights give their mean. (The unit is a thousandth of the output at least, for what float32 can tell.)
    """

    weights: Tensor
    attended: Tensor
    beyond: Tensor
    error: float


@torch.no_grad()
def token_attention(call: Call, row: int, column: int) -> TokenAttention:
    """The attention of a token of the first image.

    Args:
        call: Of one of `ATTENTIONS`, in eval mode.
        row: Of the token.
        column: Of the token.
    """
    find = {ELSAAttention: _elsa, OutlookAttention: _outlook}.get(type(call.module), _partition)
    weights, attended, beyond, values, joined = find(call, row, column)
    proj, theirs = call.module.proj, call.output[0, row, column]
    differ = ((values - values.mean(dim=0)) @ proj.weight.T).square().mean(dim=0).sqrt().max()
    error = (proj(joined) - theirs).abs().max() / torch.maximum(differ, 1e-3 * theirs.abs().max())
    return TokenAttention(weights, attended, beyond, error.item())


def attention_name(module: torch.nn.Module) -> str:
    """What a title calls it."""
    if isinstance(module, ELSAAttention):
        return f'ELSA {module.kernel_size} x {module.kernel_size}'
    if isinstance(module, PartitionAttention):
        return 'grid' if module.grid else 'window'
    if isinstance(module, OutlookAttention):
        return f'outlook {module.kernel_size} x {module.kernel_size}'
    if isinstance(module, GlobalAttention):
        return 'window' if module.window_size else 'global'
    return f'window shifted by {module.shift_size}' if module.shift_size else 'window'


def _partition(call: Call, row: int, column: int) -> tuple[Tensor, ...]:
    """out[i] = sum_j P[i, j] v[j] with P[i, :] = softmax_j(scale q[i] . k[j] + bias[i, j] + mask[i, j]).

    Returns:
        weights, attended and beyond as in `TokenAttention`; v [N, C] and out[i] [C], both before the projection.
    """
    module = call.module
    H, W, C = call.x.shape[1:]
    heads = module.num_heads
    tokens = torch.arange(H * W, device=call.x.device).view(1, H, W, 1) + 1  # 0 is padding
    shift, swin = 0, isinstance(module, WindowAttention)
    if swin:
        window = (module.window_size, module.window_size)
        shift = module.shift_size if module.shift_single_window or max(H, W) > module.window_size else 0
        bias = module.bias()
    elif isinstance(module, GlobalAttention):
        window = (module.window_size, module.window_size) if module.window_size else (H, W)
        bias = call.x.new_zeros(heads, 1, 1).expand(heads, window[0] * window[1], -1)
    else:
        window = call.context[0]
        bias = module.bias(window)
    groups, padded = (
        grid_partition(tokens, window)
        if isinstance(module, PartitionAttention) and module.grid
        else window_partition(tokens, window, shift)
    )
    groups = groups[0, :, :, 0]  # [groups, N]
    group, i = (groups == 1 + row * W + column).nonzero()[0].tolist()
    padding = groups[group] == 0
    places = (groups[group] - 1).clamp(min=0)  # [N], of the map row by row

    qkv = module.qkv(call.x)[0].flatten(0, 1)[places]  # [N, 3 * C]
    if swin:
        qkv[padding] = module.qkv.bias  # the projection of a zero
    q, k, v = qkv.view(-1, 3, heads, C // heads).permute(1, 2, 0, 3)  # [heads, N, head_dim] each
    logits = module.scale * (k @ q[:, i, :, None])[..., 0] + bias[:, i]  # [heads, N]
    attended = ~padding
    if shift:
        mask = shifted_window_mask(padded, window, shift, call.x.device)[group, i]
        logits = logits + mask
        attended = attended & (mask == 0)
    if not swin:
        logits = logits.masked_fill(padding, float('-inf'))
    P = logits.softmax(dim=-1)
    joined = (P[:, None] @ v).flatten()

    weights = P.new_zeros(heads, H * W)
    weights[:, places[~padding]] = P[:, ~padding]
    seen = torch.zeros(H * W, dtype=torch.bool, device=P.device)
    seen[places[attended]] = True
    values = v.transpose(0, 1).flatten(1)
    return weights.view(heads, H, W), seen.view(H, W), P[:, padding].sum(dim=1), values, joined


def elsa_filters(call: Call, row: int, column: int) -> tuple[Tensor, Tensor]:
    """The two halves of ELSA's filter at a token of the first image.

    Returns:
        What is computed from the image, A [num_heads, k, k], which sums to 1 in each head; what is learnt, the ghost
        head S [C, k, k]. Channel c of head g is filtered with A[g] + S[c], or with A[g] * M[c] + S[c] where the ghost
        head has factors M.
    """
    module = call.module
    k = module.kernel_size
    query, key, value = _elsa_projections(call)
    logits = module.logits(query, key)[0, row, column]
    static = value.new_zeros(value.shape[3], k, k) if module.ghost_head is None else module.ghost_head
    static = static if module.gamma in (0, 1) else module.gamma * static
    return logits.view(module.num_heads, -1).softmax(dim=1).view(-1, k, k), static


def _elsa_projections(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    dims = call.module.qk_dims
    return call.module.qkv(call.x).split((dims, dims, call.x.shape[3]), dim=3)


def _elsa(call: Call, row: int, column: int) -> tuple[Tensor, ...]:
    """out[c] = sum_j (A[g(c), j] M[c, j] + S[c, j]) v[c, neighbour j], taps outside being 0. Returns as above."""
    module = call.module
    H, W, C = call.x.shape[1:]
    k, step = module.kernel_size, module.dilation
    r = k // 2 * step
    rows, columns = slice(row, row + 2 * r + 1, step), slice(column, column + 2 * r + 1, step)
    A, S = elsa_filters(call, row, column)
    v = F.pad(_elsa_projections(call)[2][0].permute(2, 0, 1), (r, r, r, r))  # [C, H + 2r, W + 2r]
    neighbours = v[:, rows, columns]
    filters = A.repeat_interleave(C // module.num_heads, dim=0)
    filters = (filters if module.ghost_mul is None else filters * module.ghost_mul**module.lam) + S
    joined = (filters * neighbours).sum(dim=(1, 2))

    def on_map(patch: Tensor) -> Tensor:
        """[..., k, k] around the token -> [..., H, W]."""
        canvas = patch.new_zeros(*patch.shape[:-2], H + 2 * r, W + 2 * r)
        canvas[..., rows, columns] = patch
        return canvas[..., r : r + H, r : r + W]

    weights = on_map(A)
    attended = on_map(torch.ones(k, k, dtype=torch.bool, device=A.device))
    return weights, attended, (1 - weights.sum(dim=(1, 2))).clamp(min=0), neighbours.flatten(1).T, joined


def _outlook(call: Call, row: int, column: int) -> tuple[Tensor, ...]:
    """What the windows give to a token, of what they hold: the derivative of its output. Returns as `_partition`."""
    module = call.module
    B, H, W, _ = call.x.shape
    options = {'num_heads': module.num_heads, 'kernel_size': module.kernel_size, 'stride': module.stride}
    logits = module.scale * module.attn(module.centres(call.x))
    with torch.enable_grad():
        one = call.x.new_ones(B, H, W, module.num_heads).requires_grad_()
        gathered = outlook(one, logits, **options)[0, row, column]
        weights = torch.autograd.grad(gathered.sum(), one)[0][0].permute(2, 0, 1)  # [heads, H, W]
    v = module.v(call.x)[0]
    joined = torch.einsum('hyx,yxhd->hd', weights, v.unflatten(2, (module.num_heads, -1))).flatten()
    attended = weights[0] > 0
    windows = 1
    for at, size in ((row, H), (column, W)):
        middles = torch.arange(0, size, module.stride)
        windows *= int(((middles - at).abs() <= module.kernel_size // 2).sum())
    weights = weights / windows
    return weights, attended, (1 - weights.sum(dim=(1, 2))).clamp(min=0), v[attended], joined
