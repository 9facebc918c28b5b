"""Compares detections as sets: which stands for which, and how far apart they are.

Two runtimes add in another order. That moves a box by a thousandth of a pixel, and may swap two detections of nearly
equal scores, of which one is the last that is kept or the one that suppresses the other.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .task import Row

__all__ = ['compare_detections']

SAME_IOU = 0.99  # boxes that overlap by less are of different objects
SAME_SCORE = 1e-3
AT_EDGE = 1e-4  # of scores this close to the least that is kept a few may be missing
UNMATCHED = 0.02  # share of detections that may have no counterpart: near-ties of the suppression
BOX = 0.01  # of the longer edge of the image
MASK = 0.01  # share of pixels


def compare_detections(
    instances: Sequence[Any],
    outputs: Sequence[Tensor],
    size: tuple[int, int],
    full: int,
    score_thr: float,
    mask_thr: float | None,
) -> list[Row]:
    """How far detections of a file are from those that mmdet predicted.

    Args:
        instances: mmdet's, of each image; at the size of the images.
        outputs: ``dets`` [B, N, 5], ``labels`` [B, N] and, with masks, ``masks`` [B, N, h, w].
        size: (H, W) of the images.
        full: Detections of an image at most.
        score_thr: The least score of a detection.
        mask_thr: Probability from which on a pixel belongs to an object; None without masks.
    """
    total, alone, far, off, pixels, wrong = 0, 0, 0.0, 0.0, 0, 0
    for n, theirs in enumerate(instances):
        rows = outputs[1][n] >= 0
        boxes, scores, labels = outputs[0][n][rows, :4], outputs[0][n][rows, 4], outputs[1][n][rows]
        ours = boxes, scores, labels
        pairs = _pairs((theirs.bboxes, theirs.scores, theirs.labels), ours)
        every = torch.cat((scores, theirs.scores))
        edge = min(scores.min(), theirs.scores.min()) if len(scores) and len(theirs) == full else score_thr
        total += len(every)
        for scored, taken in ((theirs.scores, pairs[:, 0]), (scores, pairs[:, 1])):
            left = torch.ones(len(scored), dtype=torch.bool)
            left[taken] = False
            at_edge = int((scored[left] <= edge + AT_EDGE).sum())
            alone += int(left.sum()) - min(at_edge, 1 + len(scored) // 20)
        if not len(pairs):
            continue
        i, j = pairs.T
        far = max(far, (theirs.bboxes[i] - boxes[j]).abs().max().item())
        off = max(off, (theirs.scores[i] - scores[j]).abs().max().item())
        if mask_thr is not None:
            pasted = _paste(outputs[2][n][rows][j], boxes[j], size) >= mask_thr
            wrong += int((pasted != theirs.masks[i]).sum())
            pixels += int((pasted | theirs.masks[i]).sum())
    rows = [
        ('unmatched', alone / max(total, 1), UNMATCHED),
        ('boxes', far, BOX * max(size)),
        ('scores', off, SAME_SCORE),
    ]
    if mask_thr is not None:
        rows.append(('masks', wrong / max(pixels, 1), MASK))
    return [Row(size, len(instances), *row, total // 2) for row in rows]


def _pairs(theirs: tuple[Tensor, Tensor, Tensor], ours: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Indices [K, 2] of detections that stand for each other, each of one side in one pair."""
    from torchvision.ops import box_iou

    overlap = box_iou(theirs[0], ours[0]).nan_to_num(0.0)
    apart = torch.cdist(theirs[0], ours[0], p=torch.inf)
    overlap = torch.where(apart < 1e-3, torch.ones_like(overlap), overlap)  # boxes without area
    same = (theirs[2][:, None] == ours[2]) & ((theirs[1][:, None] - ours[1]).abs() <= SAME_SCORE)
    overlap = torch.where(same, overlap, torch.zeros_like(overlap))
    pairs = []
    for i in range(len(overlap)):
        found = overlap[i].max(0) if overlap.shape[1] else None
        if found is not None and found.values > SAME_IOU:
            pairs.append((i, int(found.indices)))
            overlap[:, found.indices] = 0.0
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    return _do_paste_mask(masks[:, None], boxes, *size, skip_empty=False)[0]
