"""Parts of local filters: products with neighbours, shifts by a tap, filter normalisation.

A neighbourhood has K = kernel_size * kernel_size taps, numbered row by row; tap o stands for the neighbour at the
offset (o // kernel_size - kernel_size // 2, o % kernel_size - kernel_size // 2), key minus query. Neighbours outside
the map are zeros, and keep their tap.

Source: Zhou et al., "ELSA" (arXiv 2112.12786), equations 1 to 8 and appendix D; for the normalisation Zhou et al.,
"Decoupled Dynamic Filter Networks" (arXiv 2104.14107), section 3.2.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-10  # of the source, outside of the root


def filter_norm(weights: Tensor, dim: int, gain: float = 2**0.5) -> Tensor:
    """Weights of mean 0 and standard deviation gain / sqrt(K) along one axis, over its K elements.

    The deviation is the unbiased one. Equal weights give zeros, and a gradient 1e10 times as large: never begin with a
    branch of filters that is all zeros.

    Args:
        weights: of any shape; half precision is computed in float32.
        dim: the axis of the K taps.
        gain: sqrt(2) where a ReLU follows, 1 where nothing does.

    Returns:
        As `weights`, in their dtype.

    Raises:
        ValueError: for a single tap, which has no deviation.
    """
    if weights.shape[dim] < 2:
        raise ValueError(f'weights have shape {tuple(weights.shape)}: expected two or more along axis {dim}')
    if not weights.numel():  # torch warns of deviations of nothing
        return weights * gain
    wide = weights.to(torch.promote_types(weights.dtype, torch.float32))
    deviation = wide.std(dim, keepdim=True)
    normed = (wide - wide.mean(dim, keepdim=True)) / (deviation + EPSILON)
    return (normed * (gain * weights.shape[dim] ** -0.5)).to(weights.dtype)


def neighbour_products(q: Tensor, k: Tensor, kernel_size: int) -> Tensor:
    """q_i . k_j for every neighbour j of i, tap by tap: no copy of the neighbours is made or kept.

    Args:
        q: queries, [B, H, W, heads, d].
        k: keys, as q.
        kernel_size: odd edge of the neighbourhood.

    Returns:
        [B, H, W, heads, K].
    """
    if q.is_meta:  # of the shapes alone: as one product, which can be counted
        return neighbour_products_reference(q, k, kernel_size)
    return torch.stack([(q * tap).sum(-1) for tap in _taps(k, kernel_size)], dim=-1)


def neighbour_products_reference(q: Tensor, k: Tensor, kernel_size: int) -> Tensor:
    """`neighbour_products` over the unfolded keys: K times their memory."""
    windows = _pad(k, kernel_size).unfold(1, kernel_size, 1).unfold(2, kernel_size, 1)  # [B, H, W, heads, d, k, k]
    return (q.unsqueeze(-2) @ windows.flatten(-2)).squeeze(-2)


def shift_taps(x: Tensor, kernel_size: int) -> Tensor:
    """A shift of each channel by its tap: out[i, o] = x[i + offset(o), o], [B, H, W, heads, K] -> the same shape."""
    return torch.stack([tap[..., o] for o, tap in enumerate(_taps(x, kernel_size))], dim=-1)


def tap_sum(x: Tensor, weights: Iterable[Tensor], kernel_size: int, dilation: int = 1) -> Tensor:
    """sum_o weights[o] * (x at the offset of tap o), one tap after another, for recorded networks: of any size.

    Args:
        x: the map, [..., H, W].
        weights: of every tap, each as `x` or of a shape that is expanded to it.
        kernel_size: odd edge of the neighbourhood.
        dilation: distance between neighbouring taps.

    Returns:
        As `x`.
    """
    (H, W), pad = x.shape[-2:], dilation * (kernel_size // 2)
    padded, out = F.pad(x, (pad,) * 4), None
    for o, weight in enumerate(weights):
        top, left = (place * dilation for place in divmod(o, kernel_size))
        term = weight * padded[..., top : top + H, left : left + W]
        out = term if out is None else out + term
    return out


def tap_shifts(kernel_size: int, like: Tensor) -> Tensor:
    """The fixed kernels of the strict Hadamard attention (algorithm 4), [K, 2, kernel_size, kernel_size].

    Kernel o adds the first of two channels at the pixel itself to the second at the offset of tap o.
    """
    K = kernel_size**2
    shifts = torch.eye(K, dtype=like.dtype, device=like.device).unflatten(1, (kernel_size, kernel_size))
    return torch.stack([shifts[K // 2].expand_as(shifts), shifts], dim=1)


def _pad(x: Tensor, kernel_size: int) -> Tensor:
    r = kernel_size // 2
    return F.pad(x, (0, 0, 0, 0, r, r, r, r))


def _taps(x: Tensor, kernel_size: int) -> list[Tensor]:
    """Views of the padded map [B, H, W, ...], each shifted by the offset of a tap."""
    (H, W), padded = x.shape[1:3], _pad(x, kernel_size)
    places = (divmod(o, kernel_size) for o in range(kernel_size**2))
    return [padded[:, y : y + H, x : x + W] for y, x in places]
