"""Operators on boxes whose results have the same size for all values, so that one graph holds a whole detector.

What is dropped stays in its place with a score of `ABSENT`. `box_translations` has each in ONNX's operators.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ops.dispatcher import register

__all__ = ['ABSENT', 'nms_keep', 'roi_levels', 'top_k']

ABSENT = -1.0  # score of a row that holds nothing; those of networks are 0 to 1


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest along the last axis, and their indices; the first of equal ones comes first.

    Args:
        scores: [..., N], N >= k.
        k: How many.
    """
    return torch.ops.mmext_backbones.top_k(scores, k)


def nms_keep(boxes: Tensor, scores: Tensor, most: int, iou_threshold: float) -> Tensor:
    """Non-maximum suppression in groups: the scores where a box is kept, `ABSENT` elsewhere.

    Args:
        boxes: [G, N, 4], x1, y1, x2, y2.
        scores: [G, N], `ABSENT` for rows without a box.
        most: Boxes that a group keeps.
        iou_threshold: A box that overlaps a better one by more than this is dropped.
    """
    return torch.ops.mmext_backbones.nms_keep(boxes, scores, most, iou_threshold)


def roi_levels(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """RoIAlign (aligned, mean) of each box on its level of a pyramid: [K, C, *size].

    Args:
        maps: [B, C, H, W] of each level.
        rois: [K, 5], index of the image, x1, y1, x2, y2 in pixels of the image.
        levels: [K], which map, int64.
        scales: Pixels of each map by those of the image.
        size: (height, width) of the result.
        sampling_ratio: Points of a bin along an edge; 0 for as many as it has pixels.
    """
    return torch.ops.mmext_backbones.roi_levels(maps, rois, levels, scales, *size, sampling_ratio)


def _top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values[..., :k].clone(), indices[..., :k].clone()


def _nms_keep(boxes: Tensor, scores: Tensor, most: int, iou_threshold: float) -> Tensor:
    import torchvision  # noqa: F401, registers the operator

    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()  # as mmcv and ONNX have it
    kept = torch.full_like(scores, ABSENT)
    for group in range(len(boxes)):
        rows = (scores[group] > ABSENT / 2).nonzero()[:, 0]
        rows = rows[torch.ops.torchvision.nms(boxes[group, rows], scores[group, rows], threshold)[:most]]
        kept[group, rows] = scores[group, rows]
    return kept


def _roi_levels(
    maps: list[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: list[float],
    height: int,
    width: int,
    sampling_ratio: int,
) -> Tensor:
    import torchvision  # noqa: F401, registers the operator

    out = rois.new_zeros(len(rois), maps[0].shape[1], height, width)
    for level, (x, scale) in enumerate(zip(maps, scales, strict=True)):
        rows = (levels == level).nonzero()[:, 0]
        align = torch.ops.torchvision.roi_align
        out[rows] = align(x.contiguous(), rois[rows], scale, height, width, sampling_ratio, True)
    return out


register(
    'top_k',
    '(Tensor scores, int k) -> (Tensor, Tensor)',
    _top_k,
    lambda scores, k: (scores.new_empty(*scores.shape[:-1], k), scores.new_empty(*scores.shape[:-1], k).long()),
)
register(
    'nms_keep',
    '(Tensor boxes, Tensor scores, int most, float iou_threshold) -> Tensor',
    _nms_keep,
    lambda boxes, scores, most, iou_threshold: torch.empty_like(scores),
)
register(
    'roi_levels',
    '(Tensor[] maps, Tensor rois, Tensor levels, float[] scales, int height, int width, int sampling_ratio) -> Tensor',
    _roi_levels,
    lambda maps, rois, levels, scales, height, width, sampling_ratio: rois.new_empty(
        rois.shape[0], maps[0].shape[1], height, width
    ),
)
