"""Overlaps and suppression of boxes (x1, y1, x2, y2) in pixels, as `mmcv._ext` has them.

What is computed follows mmcv 2.1.0's kernels for the CPU (`csrc/pytorch/cpu/nms.cpp`, `bbox_overlaps_cpu.cpp`); of two
equal scores the box that was first goes first. Those kernels take float32 alone; here half types are computed in
float32, and float64 stays.

A box is x2 - x1 + offset wide: offset 0 for edges of boxes, 1 for indices of their last pixels. The overlap of two
boxes is their common area over that of both (0 / 0, a NaN, for two boxes without area, which therefore never suppress).
"""

import torch
from torch import Tensor

from .precision import widened

__all__ = ['bbox_overlaps', 'nms', 'nms_match', 'softnms']


def bbox_overlaps(
    bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int = 0, aligned: bool = False, offset: int = 0
) -> None:
    """Overlaps of every box of one set with every box of another, or of pairs.

    Args:
        bboxes1: [M, 4].
        bboxes2: [N, 4]; N = M if `aligned`.
        ious: [M, N], or [M] if `aligned`; written.
        mode: 0 for the common area over that of both, 1 over that of the first box.
        aligned: compare box i with box i alone.
        offset: see above.
    """
    first, second = widened(bboxes1).t(), widened(bboxes2).t()
    if not aligned:
        first = first[..., None]
    ious.copy_(_overlaps(first, second, offset, over_first=mode == 1))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression by torchvision's operator: each box kept drops those that overlap it by more.

    Args:
        boxes: [N, 4].
        scores: [N].
        iou_threshold: rounded to float32, as mmcv takes it.
        offset: see above.

    Returns:
        Indices of the boxes kept, by falling score, int64.
    """
    import torchvision  # noqa: F401, registers the operator

    boxes = widened(boxes)
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), 1)
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torch.ops.torchvision.nms(boxes, scores.to(boxes), threshold)


@torch.no_grad()
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft non-maximum suppression (arXiv 1704.04503): the best box left lowers the scores of those it overlaps.

    Args:
        boxes: [N, 4].
        scores: [N].
        dets: [N, 5]; its first K rows are written: boxes and lowered scores, in the order in which they were the best.
        iou_threshold: overlap from which on methods 0 and 1 lower a score.
        sigma: width of method 2.
        min_score: a box with a lower score than this, once lowered, is dropped.
        method: what a score is multiplied by: 0 for 0, 1 for 1 - overlap, 2 for exp(-overlap^2 / sigma).
        offset: see above.

    Returns:
        Indices of the K boxes, int64.
    """
    # one box at a time is no work for a GPU
    rows = torch.cat((widened(boxes), widened(scores)[:, None]), 1).cpu().t().contiguous()
    left, order, found = torch.arange(len(boxes)), [], []
    while len(left):
        best = rows[4].argmax()
        order.append(left[best])
        found.append(rows[:, best].clone())
        overlap = _overlaps(rows[:4, best, None], rows[:4], offset).nan_to_num_(0.0)  # theirs gives NaN scores
        if method == 2:
            rows[4] *= torch.exp(-(overlap * overlap) / sigma)
        else:
            rows[4] *= torch.where(overlap >= iou_threshold, 1 - overlap if method == 1 else 0.0, 1.0)
        stays = ~(rows[4] < min_score)
        stays[best] = False
        left, rows = left[stays], rows[:, stays]
    if not order:
        return left.to(boxes.device)
    dets[: len(order)] = torch.stack(found).to(dets)
    return torch.stack(order).to(boxes.device)


@torch.no_grad()
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Non-maximum suppression that says which box dropped which.

    Args:
        dets: [N, 5], boxes and scores.
        iou_threshold: overlap from which on a box is dropped.

    Returns:
        A group for every box kept, by falling score: its index, then those of the boxes it dropped, by falling score.
    """
    dets = widened(dets).cpu()
    left, rows = dets[:, 4].sort(descending=True, stable=True)[1], dets[:, :4].t().contiguous()
    groups = []
    while len(left):
        best, left = left[0], left[1:]
        dropped = _overlaps(rows[:, best, None], rows[:, left], 0) >= iou_threshold
        groups.append([best.item(), *left[dropped].tolist()])
        left = left[~dropped]
    return groups


def _overlaps(first: Tensor, second: Tensor, offset: int, over_first: bool = False) -> Tensor:
    """Overlaps of boxes [4, ...] of two shapes that broadcast."""
    x1, y1, x2, y2 = first
    u1, v1, u2, v2 = second
    W = (torch.minimum(x2, u2) - torch.maximum(x1, u1) + offset).clamp_(min=0)
    H = (torch.minimum(y2, v2) - torch.maximum(y1, v1) + offset).clamp_(min=0)
    common, area = W * H, (x2 - x1 + offset) * (y2 - y1 + offset)
    if over_first:
        return common / area
    return common / (area + (u2 - u1 + offset) * (v2 - v1 + offset) - common)
