"""Deformable RoI pooling, as `mmcv._ext` has it; mmcv has it for CUDA alone.

The mean over a grid of points of every bin of a box, as RoIAlign takes it, with each bin moved by an offset times
`gamma` times the edges of the box (arXiv 1703.06211, section 2.2). Boxes and grids are those of `pooling`. The
semantics are those of mmcv 2.1.0's kernel (`csrc/common/cuda/deform_roi_pool_cuda_kernel.cuh`) with one difference:
within a pixel of the border, where the map goes on as it ends, an offset across it has no gradient here.
Half types are computed in float32 and rounded once.
"""

import torch
from torch import Tensor

from .precision import widened
from .sampling import interpolated, points_of_boxes

__all__ = ['deform_roi_pool_backward', 'deform_roi_pool_forward']


def _pool(pixels: Tensor, H: int, W: int, images: Tensor, moved: Tensor | None, points: list) -> Tensor:
    """The means [N, bins, bins, C] over the points of each bin, which `moved` [N, 2, bins, bins] (x, y) moves."""
    total: Tensor | float = 0.0
    for y, x in points:
        if moved is not None:
            x, y = x + moved[:, 0], y + moved[:, 1]
        total = total + interpolated(pixels, H, W, images, y, x)
    return total / len(points)


def _moves(rois: Tensor, offset: Tensor, scale: float, gamma: float) -> Tensor | None:
    """Pixels of the map that each bin is moved by, [N, 2, bins, bins], x, y; None without offsets."""
    if offset.numel() == 0:
        return None
    edges = (rois[:, 3:5] - rois[:, 1:3]) * scale
    return gamma * edges[:, :, None, None] * offset


@torch.no_grad()
def deform_roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """Deformable RoI pooling.

    Args:
        input: maps [B, C, H, W].
        rois: [N, 5], see `pooling`.
        offset: [N, 2, pooled_height, pooled_width], x, y, or empty.
        output: [N, C, pooled_height, pooled_width]; written.
        pooled_height: bins from top to bottom.
        pooled_width: bins from left to right.
        spatial_scale: of the boxes, to pixels of the map.
        sampling_ratio: edge of the grid of points of a bin; 0 for as many as the bin has pixels, rounded up.
        gamma: see above.
    """
    maps, boxes = widened(input), rois.to(widened(input))
    moved = _moves(boxes, offset.to(maps), spatial_scale, gamma)
    _, C, H, W = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, C)
    size = pooled_height, pooled_width
    output.zero_()  # the mean over no points
    for some, points in points_of_boxes(boxes, size, spatial_scale, sampling_ratio, True, C):
        points = list(points)
        if points:
            out = _pool(pixels, H, W, boxes[some, 0], None if moved is None else moved[some], points)
            output[some] = out.permute(0, 3, 1, 2).to(output)


@torch.no_grad()
def deform_roi_pool_backward(
    grad_output: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    gamma: float,
) -> None:
    """The gradients, added to `grad_input` and `grad_offset`; see `deform_roi_pool_forward`.

    Some boxes at a time are pooled again and differentiated by autograd.
    """
    maps, boxes, offsets = widened(input), rois.to(widened(input)), offset.to(widened(input))
    B, C, H, W = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, C).requires_grad_()
    total = torch.zeros_like(pixels)
    size = pooled_height, pooled_width
    for some, points in points_of_boxes(boxes, size, spatial_scale, sampling_ratio, True, C):
        points = list(points)
        if not points:
            continue
        with torch.enable_grad():
            own = offsets[some].requires_grad_() if offsets.numel() else offsets
            out = _pool(pixels, H, W, boxes[some, 0], _moves(boxes[some], own, spatial_scale, gamma), points)
        grad = grad_output[some].to(maps).permute(0, 2, 3, 1)
        of_pixels, *of_offset = torch.autograd.grad(out, [pixels, *([own] if own.numel() else [])], grad)
        total += of_pixels
        if of_offset:
            grad_offset[some] += of_offset[0].to(grad_offset)
    grad_input += total.view(B, H, W, C).permute(0, 3, 1, 2).to(grad_input)
