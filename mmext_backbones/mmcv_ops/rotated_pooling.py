"""RoIAlign of rotated boxes (index of the image, x, y, w, h, angle), as `mmcv._ext` has it; see `pooling`.

Semantics of mmcv 2.1.0's `csrc/common/cuda/roi_align_rotated_cuda_kernel.cuh`; its form for the CPU agrees.
"""

import torch
from torch import Tensor

from .precision import widened
from .sampling import corners, interpolated, points_of_rotated_boxes

__all__ = ['roi_align_rotated_backward', 'roi_align_rotated_forward']


@torch.no_grad()
def roi_align_rotated_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """RoIAlign (mean) of rotated boxes.

    Args:
        input: maps [B, C, H, W].
        rois: [N, 6], the angle in radians.
        output: [N, C, pooled_height, pooled_width]; written.
        pooled_height: bins along h.
        pooled_width: bins along w.
        spatial_scale: see above.
        sampling_ratio: see above.
        aligned: as in `roi_align_forward`.
        clockwise: the angle turns from the x axis to the y axis, which points down.
    """
    maps, boxes = widened(input), rois.to(widened(input))
    _, C, H, W = maps.shape
    pixels = maps.permute(0, 2, 3, 1).reshape(-1, C)
    size = pooled_height, pooled_width
    for some, points in points_of_rotated_boxes(boxes, size, spatial_scale, sampling_ratio, aligned, clockwise, C):
        total, count = maps.new_zeros(len(some), *size, C), 0
        for y, x in points:
            total += interpolated(pixels, H, W, boxes[some, 0], y, x)
            count += 1
        output[some] = (total / max(count, 1)).permute(0, 3, 1, 2).to(output)


@torch.no_grad()
def roi_align_rotated_backward(
    top_grad: Tensor,
    rois: Tensor,
    bottom_grad: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    clockwise: bool,
) -> None:
    """The gradient for the maps; `bottom_grad` [B, C, H, W] is written, the rest as `roi_align_rotated_forward`."""
    grads = widened(top_grad).permute(0, 2, 3, 1)  # [N, bins, bins, C]
    boxes = rois.to(grads)
    B, C, H, W = bottom_grad.shape
    total = grads.new_zeros(B * H * W, C)
    size = pooled_height, pooled_width
    for some, points in points_of_rotated_boxes(boxes, size, spatial_scale, sampling_ratio, aligned, clockwise, C):
        points = list(points)
        grad = grads[some] / max(len(points), 1)
        first = boxes[some, 0].long()[:, None, None] * (H * W)
        for y, x in points:
            for index, weight in corners(y, x, H, W):
                total.index_add_(0, (first + index).flatten(), (grad * weight[..., None]).flatten(0, 2))
    bottom_grad.copy_(total.view(B, H, W, C).permute(0, 3, 1, 2))
