"""Sums over the neighbours of every pixel as products of matrices, for recorded networks.

Written tap by tap such a sum is kernel_size**2 slices, products and sums over the whole map, or a loop. Here the map
is cut into tiles of T x T pixels. All neighbours of the pixels of a tile lie in a square around it, whose edge is
E = T + kernel_size - 1 (zeros outside the map), so that the sum is one product of matrices a tile and head:

    [T * T pixels, E * E places] @ [E * E places, d channels]

The left one is banded: in the row of a pixel stand its filters at the places of its neighbours, and zeros elsewhere.
For 7 x 7 neighbours that is twice the arithmetic, in a handful of operators that are fast everywhere.

Taps are numbered as in `local_filters`. Sizes stay open: every shape that depends on them follows from arithmetic.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .padding import crop

TILE = 4
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
    around = _surroundings(v, kernel_size)
    pixels, places, K = TILE**2, around.shape[1], kernel_size**2
    source = [pixels * K] * (pixels * places)  # of every element of the band; the last is the zero behind the filters
    for pixel, of_taps in enumerate(_places(kernel_size)):
        for tap, place in enumerate(of_taps):
            source[pixel * places + place] = pixel * K + tap
    band = F.pad(_tiles(filters).flatten(1), (0, 1)).index_select(1, _index(source, v))
    return _joined(torch.bmm(band.view(-1, pixels, places), around), v)


def banded_products(q: Tensor, k: Tensor, kernel_size: int) -> Tensor:
    """q_i . k_j for every neighbour j of i, as `local_filters.neighbour_products`.

    Args:
        q: queries, [B, H, W, heads, d].
        k: keys, as q.
        kernel_size: odd edge of the neighbourhood.

    Returns:
        [B, H, W, heads, K].
    """
    band = torch.bmm(_tiles(q), _surroundings(k, kernel_size).mT)  # [N, T * T, E * E]
    places = band.shape[2]
    source = [pixel * places + place for pixel, of_taps in enumerate(_places(kernel_size)) for place in of_taps]
    return _joined(band.flatten(1).index_select(1, _index(source, q)).view(-1, TILE**2, kernel_size**2), q)


def banded_shifts(x: Tensor, kernel_size: int) -> Tensor:
    """out[i, o] = x[i + offset(o), o], as `local_filters.shift_taps`: [B, H, W, heads, K] -> the same shape."""
    K = kernel_size**2
    source = [place * K + tap for of_taps in _places(kernel_size) for tap, place in enumerate(of_taps)]
    return _joined(_surroundings(x, kernel_size).flatten(1).index_select(1, _index(source, x)).view(-1, TILE**2, K), x)


def _places(kernel_size: int) -> list[list[int]]:
    """Of each pixel of a tile, where in the square around it its neighbours stand, tap by tap: T * T times K."""
    edge, taps = TILE + kernel_size - 1, range(kernel_size)
    return [[(y + dy) * edge + x + dx for dy in taps for dx in taps] for y in range(TILE) for x in range(TILE)]


def _index(numbers: list[int], like: Tensor) -> Tensor:
    return torch.tensor(numbers, device=like.device)


def _counts(x: Tensor) -> tuple[int, int]:
    """Rows and columns of tiles of a map [B, H, W, ...]."""
    return -(-x.shape[1] // TILE), -(-x.shape[2] // TILE)


def _tiles(x: Tensor) -> Tensor:
    """A map, filled up with zeros, in tiles: [B, H, W, heads, c] -> [N, T * T, c], N = B * heads * rows * columns."""
    (B, H, W, heads, c), (rows, columns) = x.shape, _counts(x)
    x = F.pad(x, (0, 0, 0, 0, 0, columns * TILE - W, 0, rows * TILE - H))
    x = x.reshape(B, rows, TILE, columns, TILE, heads, c).permute(0, 5, 1, 3, 2, 4, 6)
    return x.reshape(-1, TILE**2, c)


def _surroundings(x: Tensor, kernel_size: int) -> Tensor:
    """The square around every tile: [B, H, W, heads, c] -> [N, E * E, c]."""
    (_, H, W, _, c), (rows, columns) = x.shape, _counts(x)
    edge, rim = TILE + kernel_size - 1, kernel_size // 2
    x = x.permute(0, 3, 1, 2, 4)
    x = F.pad(x, (0, 0, rim, columns * TILE - W + rim, rim, rows * TILE - H + rim))
    inside = torch.arange(edge, device=x.device)
    y, z = (TILE * torch.arange(count, device=x.device)[:, None] + inside for count in (rows, columns))
    places = y[:, None, :, None] * (columns * TILE + 2 * rim) + z[:, None, :]  # [rows, columns, E, E]
    return x.flatten(2, 3).index_select(2, places.flatten()).reshape(-1, edge**2, c)


def _joined(x: Tensor, like: Tensor) -> Tensor:
    """The inverse of `_tiles`, for a map as `like`: [N, T * T, c] -> [B, H, W, heads, c]."""
    (B, H, W, heads, _), (rows, columns), c = like.shape, _counts(like), x.shape[-1]
    x = x.reshape(B, heads, rows, columns, TILE, TILE, c).permute(0, 2, 4, 3, 5, 1, 6)
    x = x.reshape(B, rows * TILE, columns * TILE, heads * c)
    return crop(x, H, W).unflatten(-1, (heads, c))
