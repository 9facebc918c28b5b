"""Overlaps and suppression of rotated boxes (x, y, w, h, angle), as `mmcv._ext` has them.

x, y is the centre, in pixels; the angle, in radians, turns the edges w from the x axis towards the y axis (clockwise in
an image; mmcv's `clockwise=False` is a changed sign before it comes here). Thresholds and boxes without area are as in
mmcv 2.1.0's kernels for the CPU (`csrc/common/box_iou_rotated_utils.hpp`, `csrc/pytorch/cpu/nms_rotated.cpp`).

The common area is another way round: they sort crossings and corners into a polygon. Seen from the first box, whose
edges are then those of |x| <= a, |y| <= b, the second box has at each x a lowest and a highest y, and what they have in
common there is as long as these two are apart once both are clamped to [-b, b]. So the area is the integral of
clamp(y, -b, b) dx once around the second box, over the |x| <= a: a sum over its four edges, of trapezoids between the
points where an edge crosses x = +-a and y = +-b. It needs no order of points and has no special cases.
"""

import torch
from torch import Tensor

from .precision import widened

__all__ = ['box_iou_rotated', 'nms_rotated']

PAIRS = 1 << 16  # computed at once: some 20 MB
NO_AREA = 1e-14


@torch.no_grad()
def box_iou_rotated(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    """Overlaps of every rotated box of one set with every one of another, or of pairs.

    Args:
        bboxes1: [M, 5].
        bboxes2: [N, 5]; N = M if `aligned`.
        ious: [M * N], or [M] if `aligned`; written.
        mode_flag: 0 for the common area over that of both, 1 over that of the first box.
        aligned: compare box i with box i alone.
    """
    first, second = widened(bboxes1), widened(bboxes2)
    if aligned:
        found = [_overlaps(*pairs, mode_flag) for pairs in zip(first.split(PAIRS), second.split(PAIRS), strict=True)]
    else:
        rows = max(1, PAIRS // max(1, len(second)))
        found = [_overlaps(some[:, None], second[None], mode_flag).flatten() for some in first.split(rows)]
    ious.copy_(torch.cat(found).view_as(ious))


@torch.no_grad()
def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: bool,
) -> Tensor:
    """Non-maximum suppression of rotated boxes: each box kept drops those that overlap it by as much or more.

    Args:
        dets: [N, 5], or [N, 6] with a label each if `multi_label`.
        scores: [N].
        order: indices by falling score, [N].
        dets_sorted: `dets` in that order.
        labels: [N] or empty. As in mmcv's kernels, boxes of different labels drop each other too (its `batched_nms`
            moves them apart).
        iou_threshold: overlap from which on a box is dropped. (mmcv's kernel for CUDA drops above it only.)
        multi_label: whether there are labels.

    Returns:
        Indices of the boxes kept, by falling score, int64.
    """
    boxes = widened(dets_sorted[:, :5])
    kept = torch.ones(len(boxes), dtype=torch.bool)
    rows = max(1, PAIRS // max(1, len(boxes)))
    for start in range(0, len(boxes), rows):
        candidates = start + kept[start : start + rows].nonzero()[:, 0]
        if len(candidates) == 0:
            continue
        some = boxes[candidates.to(boxes.device)]
        drops = (_overlaps(some[:, None], boxes[None, start:], 0) >= iou_threshold).cpu()
        for i, dropped in zip(candidates.tolist(), drops, strict=True):
            if kept[i]:
                kept[i + 1 :] &= ~dropped[i + 1 - start :]
    return order[kept.to(order.device)]


def _overlaps(first: Tensor, second: Tensor, mode: int) -> Tensor:
    """Overlaps of rotated boxes [..., 5] of two shapes that broadcast."""
    x, y, w, h, angle = first.unbind(-1)
    u, v, W, H, turn = second.unbind(-1)
    area, other = w * h, W * H
    # the centre and the half edges of the second box, seen from the first
    cos, sin = angle.cos(), angle.sin()
    u, v = u - x, v - y
    u, v = u * cos + v * sin, v * cos - u * sin
    turn = turn - angle
    cos, sin = turn.cos() / 2, turn.sin() / 2
    px, py, qx, qy = W * cos, W * sin, -H * sin, H * cos  # along w, along h
    xs = torch.stack((u - px - qx, u + px - qx, u + px + qx, u - px + qx))
    ys = torch.stack((v - py - qy, v + py - qy, v + py + qy, v - py + qy))  # corners, from x to y
    a, b = w.abs() / 2, h.abs() / 2
    common = _integral(xs, ys, xs.roll(-1, 0), ys.roll(-1, 0), a, b).sum(0).abs()
    common = torch.minimum(common, torch.minimum(area, other))
    base = area if mode == 1 else area + other - common
    return torch.where((area < NO_AREA) | (other < NO_AREA), 0.0, common / base)


def _integral(x: Tensor, y: Tensor, x_end: Tensor, y_end: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Integral of clamp(y, -b, b) dx along edges from (x, y) to (x_end, y_end), over their parts with |x| <= a."""
    dx, dy = x_end - x, y_end - y
    enter, leave = _crossings(x, dx, a, torch.zeros_like(x), torch.ones_like(x))
    low, high = _crossings(y, dy, b, enter, leave)
    total = torch.zeros_like(x)
    for start, end in ((enter, low), (low, high), (high, leave)):  # clamp(y) is straight along each
        heights = (y + start * dy).clamp(-b, b) + (y + end * dy).clamp(-b, b)
        total += heights / 2 * ((x + end * dx).clamp(-a, a) - (x + start * dx).clamp(-a, a))
    return total


def _crossings(x: Tensor, dx: Tensor, a: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """The t from start to end where x + t dx enters |x| <= a and where it leaves; the same one if it never does."""
    dx = torch.where(dx == 0, torch.finfo(dx.dtype).tiny, dx)
    s, t = (-a - x) / dx, (a - x) / dx
    s, t = torch.minimum(s, t), torch.maximum(s, t)
    return torch.minimum(torch.maximum(s, start), end), torch.minimum(torch.maximum(t, start), end)
