"""Maps cut out along boxes and pooled to one size, as `mmcv._ext` has them.

A box is (index of the image, x1, y1, x2, y2), in pixels of the image; times `spatial_scale` in those of the map. It is
cut into bins, and what is in a bin becomes one number:

- RoIAlign (arXiv 1703.06870) samples each bin at a grid of points between the map's pixels, and takes their mean
  (torchvision's operator: the same bits as mmcv's) or their maximum. `sampling_ratio` is the edge of the grid; 0 means
  as many points as the bin has pixels, rounded up.
- RoIPool takes the largest of the pixels that a bin touches. mmcv's edges are not rounded as torchvision's are.

The semantics are those of mmcv 2.1.0's kernels (`csrc/pytorch/cpu/roi_align.cpp`; for RoIPool, which it has for CUDA
alone, `csrc/common/cuda/roi_pool_cuda_kernel.cuh`). Half types are computed in float32 and rounded once. The loops here
run over the points of a bin, all bins of all boxes at a time.
"""

import torch
from torch import Tensor

from .precision import widened
from .sampling import ELEMENTS, corners, interpolated, points_of_boxes

__all__ = [
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
]

LOWEST = -10000.0  # what the maximum over no points is in mmcv's kernel, and the least it can be
NOWHERE = -1.0  # where that was


@torch.no_grad()
def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign.

    Args:
        input: maps [B, C, H, W].
        rois: [N, 5].
        output: [N, C, aligned_height, aligned_width]; written.
        argmax_y: where the maximum is, in pixels of the map, of the shape of the output for pool_mode 0, else empty;
            written.
        argmax_x: the same, x.
        aligned_height: bins from top to bottom.
        aligned_width: bins from left to right.
        spatial_scale: see above.
        sampling_ratio: see above.
        pool_mode: 0 for the maximum, 1 for the mean.
        aligned: the centres of pixels are at 0, 1, 2, not at a half; if not, boxes are also at least a pixel wide.
    """
    maps, boxes = widened(input), rois.to(widened(input))
    size = aligned_height, aligned_width
    if pool_mode == 1:
        import torchvision  # noqa: F401, registers the operator

        output.copy_(torch.ops.torchvision.roi_align(maps, boxes, spatial_scale, *size, sampling_ratio, aligned))
        return
    _, C, H, W = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, C)
    for some, points in points_of_boxes(boxes, size, spatial_scale, sampling_ratio, aligned, C):
        best = maps.new_full((len(some), *size, C), LOWEST)
        best_y, best_x = torch.full_like(best, NOWHERE), torch.full_like(best, NOWHERE)
        for y, x in points:
            value = interpolated(pixels, H, W, boxes[some, 0], y, x)
            better = value > best
            best = torch.where(better, value, best)
            best_y, best_x = torch.where(better, y[..., None], best_y), torch.where(better, x[..., None], best_x)
        for to, values in ((output, best), (argmax_y, best_y), (argmax_x, best_x)):
            to[some] = values.permute(0, 3, 1, 2).to(to)


@torch.no_grad()
def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of RoIAlign for the maps; `grad_input` [B, C, H, W] is written, the rest as `roi_align_forward`."""
    grad = widened(grad_output)
    boxes = rois.to(grad)
    if pool_mode == 1:
        import torchvision  # noqa: F401, registers the operator

        backward = torch.ops.torchvision._roi_align_backward
        geometry = spatial_scale, aligned_height, aligned_width, *grad_input.shape, sampling_ratio, aligned
        grad_input.copy_(backward(grad, boxes, *geometry))
        return
    y, x = argmax_y.to(grad), argmax_x.to(grad)
    grad, total = grad * (y != NOWHERE), grad.new_zeros(grad_input.shape)
    for pixel, weight in corners(y, x, *grad_input.shape[2:]):
        _scatter(total, grad * weight, boxes, pixel)
    grad_input.copy_(total)


@torch.no_grad()
def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool.

    Bin i of n along an edge that goes from e.g. y1 * scale to (y2 + 1) * scale holds the pixels from the floor of its
    start to the ceiling of its end, on the map. A bin without pixels gives 0.

    Args:
        input: maps [B, C, H, W].
        rois: [N, 5].
        output: [N, C, pooled_height, pooled_width]; written.
        argmax: which pixel is the largest, y * W + x, of the shape of the output, int32; -1 for none; written. (mmcv's
            kernel leaves a 0 for a box with x2 + 1 <= x1, to whose pixel a gradient then goes.)
        pooled_height: bins from top to bottom.
        pooled_width: bins from left to right.
        spatial_scale: see above.
    """
    maps, boxes = widened(input), rois.to(widened(input))
    _, C, H, W = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, C)
    size = pooled_height, pooled_width
    first, last = boxes[:, [2, 1]] * spatial_scale, (boxes[:, [4, 3]] + 1) * spatial_scale  # y, x
    steps = (last - first) / torch.tensor(size).to(boxes) * (last > first).all(1, keepdim=True)
    most = max(1, ELEMENTS // (C * size[0] * size[1]))
    for some in (slice(i, i + most) for i in range(0, len(boxes), most)):
        y_start, y_end = _pixels_of_bins(first[some, 0], steps[some, 0], pooled_height, H)
        x_start, x_end = _pixels_of_bins(first[some, 1], steps[some, 1], pooled_width, W)
        start = boxes[some, 0].long()[:, None, None] * (H * W)
        best = maps.new_full((len(start), *size, C), -torch.inf)
        where = torch.full(best.shape, -1, device=boxes.device)
        for dy in range((y_end - y_start).max()):
            for dx in range((x_end - x_start).max()):
                y, x = (y_start + dy)[:, :, None], (x_start + dx)[:, None]
                inside = (y < y_end[:, :, None]) & (x < x_end[:, None])
                pixel = (y * W + x) * inside  # [N, bins, bins]
                value = pixels[start + pixel]
                better = (value > best) & inside[..., None]
                best, where = torch.where(better, value, best), torch.where(better, pixel[..., None], where)
        output[some] = torch.where(where < 0, 0.0, best).permute(0, 3, 1, 2).to(output)
        argmax[some] = where.permute(0, 3, 1, 2).to(argmax)


@torch.no_grad()
def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """The gradient of RoIPool for the maps; `grad_input` [B, C, H, W] is written, the rest as `roi_pool_forward`."""
    grad = widened(grad_output)
    total = grad.new_zeros(grad_input.shape)
    _scatter(total, grad * (argmax >= 0), rois, argmax.clamp(min=0))
    grad_input.copy_(total)


def _pixels_of_bins(first: Tensor, step: Tensor, num_bins: int, size: int) -> tuple[Tensor, Tensor]:
    """The first pixel of each bin and the one after its last [N, num_bins]; the same if it is empty or has no step."""
    edges = first[:, None] + torch.arange(num_bins + 1, device=first.device) * step[:, None]
    start, end = edges[:, :-1].floor().clamp(0, size).long(), edges[:, 1:].ceil().clamp(0, size).long()
    return start, torch.where(step[:, None] > 0, end, start)


def _scatter(total: Tensor, grad: Tensor, boxes: Tensor, pixel: Tensor) -> None:
    """Add each value of grad [N, C, bins, bins] to total [B, C, H, W] at its pixel, y * W + x."""
    C, H, W = total.shape[1:]
    plane = boxes[:, 0].long()[:, None] * C + torch.arange(C, device=grad.device)  # [N, C]
    total.view(-1).scatter_add_(0, (plane[..., None, None] * (H * W) + pixel).flatten(), grad.flatten())
