"""Points inside the bins of boxes, and maps at such points, for RoIAlign.

A point is a pair y, x in pixels of the map; formulas as in mmcv 2.1.0's kernels (see `pooling`), bit for bit.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

ELEMENTS = 1 << 24  # numbers computed of a point of all bins at once

Points = Iterator[tuple[Tensor, Iterator[tuple[Tensor, Tensor]]]]


def points_of_boxes(
    boxes: Tensor, size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool, channels: int
) -> Points:
    """Boxes [N, 5] with as many points a bin, and those points: y, x [N, bins, bins] of every bin's first, second, ...

    The boxes are indices into all; so few that what is computed of a point stays small.
    """
    first, last = (boxes[:, corner] * scale - 0.5 * aligned for corner in ([2, 1], [4, 3]))  # y, x
    edges = last - first
    yield from _grids(first, edges if aligned else edges.clamp(min=1), size, sampling_ratio, channels)


def points_of_rotated_boxes(
    boxes: Tensor,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
    channels: int,
) -> Points:
    """As `points_of_boxes`, of boxes [N, 6]: points about the centre of a box, turned and then moved there."""
    centre, edges = boxes[:, [2, 1]] * scale - 0.5 * aligned, boxes[:, [4, 3]] * scale
    if not aligned:
        edges = edges.clamp(min=1)
    angle = -boxes[:, 5] if clockwise else boxes[:, 5]
    for some, points in _grids(-edges / 2, edges, size, sampling_ratio, channels):
        cos, sin = angle[some].cos()[:, None, None], angle[some].sin()[:, None, None]
        cy, cx = centre[some, :, None, None].unbind(1)
        yield some, ((y * cos - x * sin + cy, y * sin + x * cos + cx) for y, x in points)


def _grids(first: Tensor, edges: Tensor, size: tuple[int, int], sampling_ratio: int, channels: int) -> Points:
    """As `points_of_boxes`, of what starts at `first` [N, 2] and has `edges` [N, 2], both y, x."""
    bins = edges / torch.tensor(size).to(edges)
    grids = torch.full_like(edges, sampling_ratio) if sampling_ratio > 0 else bins.ceil()
    most = max(1, ELEMENTS // (channels * size[0] * size[1]))
    for grid in torch.unique(grids, dim=0):
        for some in (grids == grid).all(1).nonzero()[:, 0].split(most):
            yield some, _grid(first[some], bins[some], size, [int(n) for n in grid.tolist()])


def _grid(first: Tensor, bins: Tensor, size: tuple[int, int], grid: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    starts = [
        first[:, axis, None] + torch.arange(size[axis], device=first.device) * bins[:, axis, None] for axis in (0, 1)
    ]
    for i in range(grid[0]):
        y = starts[0] + (i + 0.5) * bins[:, :1] / grid[0]
        for j in range(grid[1]):
            x = starts[1] + (j + 0.5) * bins[:, 1:] / grid[1]
            yield y[:, :, None].expand(-1, -1, size[1]), x[:, None, :].expand(-1, size[0], -1)


def corners(y: Tensor, x: Tensor, H: int, W: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels about each point, y * W + x, and their weights: bilinear, 0 beyond a pixel outside the map."""
    inside = (y >= -1) & (y <= H) & (x >= -1) & (x <= W)
    y, x = y.clamp(0, H - 1), x.clamp(0, W - 1)
    top, left = y.long(), x.long()
    below, right = (top + 1).clamp(max=H - 1), (left + 1).clamp(max=W - 1)
    down, across = y - top, x - left
    for row, height in ((top, 1 - down), (below, down)):
        for column, width in ((left, 1 - across), (right, across)):
            yield row * W + column, height * width * inside


def interpolated(pixels: Tensor, H: int, W: int, images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Maps, as pixels [B * H * W, C], at the points y, x [N, bins, bins] of the images [N]: [N, bins, bins, C]."""
    start = images.long()[:, None, None] * (H * W)
    return sum(pixels[start + index] * weight[..., None] for index, weight in corners(y, x, H, W))
