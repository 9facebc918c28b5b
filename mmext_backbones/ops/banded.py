"""Sums over the neighbours of every pixel as products of matrices, for recorded networks.

Written tap by tap such a sum is kernel_size**2 slices, products and sums over the whole map, or a loop. Here the map
is cut into tiles of T x T pixels. All neighbours of the pixels of a tile lie in a square around it, whose edge is
E = T + kernel_size - 1 (zeros outside the map), so that the sum is one product of matrices a tile and head:

    [T * T pixels, E * E places] @ [E * E places, d channels]

The left one is banded: in the row of a pixel stand its filters at the places of its neighbours, and zeros elsewhere.
For 7 x 7 neighbours that is four times the arithmetic, in a handful of operators that are fast everywhere.

Taps are numbered as in `local_filters`. Sizes stay open: every shape that depends on them follows from arithmetic.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import crop

TILE = 8
FEWEST_CHANNELS = 8  # of a head: below, the band is larger than what the taps read


def banded_sum(v: Tensor, filters: Tensor, kernel_size: int) -> Tensor:
    """sum_j filters[..., j] * v at neighbour j, for every pixel and head.

    Args:
        v: the values, [B, H, W, heads, d].
        filters: of every pixel and head, [B, H, W, heads, K] with K = kernel_size**2.
        kernel_size: odd edge of the neighbourhood.

    Returns:
        [B, H, W, heads, d].
    """
    tiles = _tiles(filters).unflatten(-1, (kernel_size, kernel_size))  # [B, rows, columns, heads, T, T, k, k]
    band = tiles.permute(0, 1, 2, 3, 4, 6, 5, 7).flatten(0, 3)  # [N, T (y), k (y), T (x), k (x)]
    edge = TILE + kernel_size - 1
    band = _spread(band.unsqueeze(-1), edge).flatten(-3)  # [N, T (y), k (y), T * E]
    band = _spread(band, edge).unflatten(-1, (TILE, edge))  # [N, T (y), E (y), T (x), E (x)]
    band = band.transpose(2, 3).reshape(-1, TILE**2, edge**2)
    return _joined(torch.bmm(band, _surroundings(v, kernel_size).flatten(0, 3)), v)


def banded_products(q: Tensor, k: Tensor, kernel_size: int) -> Tensor:
    """q_i . k_j for every neighbour j of i, as `local_filters.neighbour_products`.

    Args:
        q: queries, [B, H, W, heads, d].
        k: keys, as q.
        kernel_size: odd edge of the neighbourhood.

    Returns:
        [B, H, W, heads, K].
    """
    edge = TILE + kernel_size - 1
    q_tiles = _tiles(q).flatten(4, 5).flatten(0, 3)  # [N, T * T, d]
    band = torch.bmm(q_tiles, _surroundings(k, kernel_size).flatten(0, 3).mT)  # [N, T * T, E * E]
    band = band.view(-1, TILE, TILE, edge, edge).transpose(2, 3)  # [N, T (y), E (y), T (x), E (x)]
    band = _collect(band.flatten(-2), kernel_size).unflatten(-1, (TILE, edge, 1))  # [N, T (y), k (y), T (x), E (x), 1]
    taps = _collect(band, kernel_size).squeeze(-1).transpose(2, 3)  # [N, T (y), T (x), k (y), k (x)]
    return _joined(taps.reshape(-1, TILE**2, kernel_size**2), q)


def banded_shifts(x: Tensor, kernel_size: int) -> Tensor:
    """out[i, o] = x[i + offset(o), o], as `local_filters.shift_taps`: [B, H, W, heads, K] -> the same shape."""
    edge = TILE + kernel_size - 1
    around = _surroundings(x, kernel_size).flatten(0, 3).unflatten(1, (edge, edge))
    around = around.unflatten(-1, (kernel_size, kernel_size)).permute(0, 3, 1, 4, 2)  # [N, k (y), E (y), k (x), E (x)]
    rows = _collect(around.unsqueeze(-1), TILE).flatten(-3)  # [N, k (y), E (y), k * T]
    taps = _collect(rows, TILE).unflatten(-1, (kernel_size, TILE))  # [N, k (y), T (y), k (x), T (x)]
    return _joined(taps.permute(0, 2, 4, 1, 3).reshape(-1, TILE**2, kernel_size**2), x)


def _spread(x: Tensor, width: int) -> Tensor:
    """The rows of matrices, each moved right by its number: out[i, i + j] = x[i, j], zeros elsewhere.

    Rows that are filled up to one element more than the width are, read on, rows of that width: each a place later.

    Args:
        x: [..., n, m, inner]; each element of the matrices is a vector.
        width: of the result, n + m - 1.

    Returns:
        [..., n, width, inner].
    """
    n, m, inner = x.shape[-3:]
    rows = F.pad(x, (0, 0, 0, width + 1 - m)).flatten(-3)
    return rows[..., : n * width * inner].unflatten(-1, (n, width, inner))


def _collect(x: Tensor, m: int) -> Tensor:
    """The inverse of `_spread`: out[i, j] = x[i, i + j], [..., n, n + m - 1, inner] -> [..., n, m, inner]."""
    n, width, inner = x.shape[-3:]
    rows = F.pad(x.flatten(-3), (0, n * inner))
    return rows.unflatten(-1, (n, width + 1, inner))[..., :m, :]


def _counts(x: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles of a map [B, H, W, ...]."""
    return -(-x.shape[1] // TILE), -(-x.shape[2] // TILE)


def _tiles(x: Tensor) -> Tensor:
    """A map, filled up with zeros, in tiles: [B, H, W, heads, c] -> [B, rows, columns, heads, T, T, c]."""
    (B, H, W, heads, c), (rows, columns) = x.shape, _counts(x)
    x = F.pad(x, (0, 0, 0, 0, 0, columns * TILE - W, 0, rows * TILE - H))
    return x.reshape(B, rows, TILE, columns, TILE, heads, c).permute(0, 1, 3, 5, 2, 4, 6)


def _surroundings(x: Tensor, kernel_size: int) -> Tensor:
    """The square around every tile: [B, H, W, heads, c] -> [B, rows, columns, heads, E * E, c]."""
    (B, H, W, heads, c), counts = x.shape, _counts(x)
    edge, rim = TILE + kernel_size - 1, kernel_size // 2
    right, bottom = (count * TILE - size + rim for count, size in zip(reversed(counts), (W, H), strict=True))
    x = F.pad(x, (0, 0, 0, 0, rim, right, rim, bottom))
    for axis, count in enumerate(counts, start=1):
        places = TILE * torch.arange(count, device=x.device)[:, None] + torch.arange(edge, device=x.device)
        x = x.index_select(axis, places.flatten())
    x = x.view(B, counts[0], edge, counts[1], edge, heads, c)
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)


def _joined(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_tiles`, for a map as `like`: [B * rows * columns * heads, T * T, c] -> [B, H, W, heads, c]."""
    (B, H, W, heads, _), (rows, columns), c = like.shape, _counts(like), x.shape[-1]
    x = x.reshape(B, rows, columns, heads, TILE, TILE, c).permute(0, 1, 4, 2, 5, 3, 6)
    x = x.reshape(B, rows * TILE, columns * TILE, heads * c)
    return crop(x, H, W).unflatten(-1, (heads, c))
