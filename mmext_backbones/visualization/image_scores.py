"""How good the prediction of one image is: a number to sort images by, and a line that says what it is made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import UserError

__all__ = ['ImageScore', 'match_boxes', 'score_image']

MATCHED = 0.5  # IoU from which a box counts as found


@dataclass(frozen=True)
class ImageScore:
    """Of one image.

    Attributes:
        value: From 0, the worst, to 1; NaN where there is nothing to measure, as in a map without labels.
        detail: What `value` is, and from what it follows.
    """

    value: float
    detail: str


def score_image(sample: Any, score_thr: float, classes: Sequence[str] | None = None) -> ImageScore:
    """The score of a data sample with ground truth and prediction.

    Boxes: F1, of those predicted with at least `score_thr`, where one is right if it has the class of an object and an
    IoU of at least 0.5 with it; crowds and ignored objects count neither way. Label maps: the mean IoU over the classes
    that the image or its prediction has. Classes: the probability that the right one is given.

    Raises:
        UserError: if the sample has no ground truth, or none of these.
    """
    if 'gt_instances' in sample and 'pred_instances' in sample:
        return _score_boxes(sample, score_thr)
    if 'gt_sem_seg' in sample and 'pred_sem_seg' in sample:
        return _score_map(sample, len(classes) if classes is not None else None)
    if 'gt_label' in sample and 'pred_score' in sample:
        right = [float(sample.pred_score[int(label)]) for label in sample.gt_label]
        value = sum(right) / max(1, len(right))
        return ImageScore(value, f'{value:.2f} for the right class')
    raise UserError(
        f'image {sample.get("img_path")!r} has no ground truth, so there is nothing to measure predictions by. The '
        'pipeline has to load annotations (LoadAnnotations).'
    )


def _boxes(instances: Any) -> Tensor:
    return getattr(instances.bboxes, 'tensor', instances.bboxes).detach().float().cpu()


def _score_boxes(sample: Any, score_thr: float) -> ImageScore:
    gt, pred = sample.gt_instances, sample.pred_instances
    pred = pred[pred.scores >= score_thr]
    pred = pred[pred.scores.argsort(descending=True)]
    ignored = _boxes(sample.ignored_instances) if 'ignored_instances' in sample else torch.zeros(0, 4)
    ious, false = match_boxes(_boxes(gt), gt.labels.cpu(), _boxes(pred), pred.labels.cpu(), ignored)
    found, objects = len(ious), len(gt)
    total = 2 * found + false + (objects - found)
    value = 2 * found / total if total else 1.0
    mean = f', mean IoU {sum(ious) / found:.2f}' if found else ''
    return ImageScore(value, f'F1 {value:.2f}: {found} of {objects} found, {false} false{mean}')


def match_boxes(
    gt: Tensor, gt_labels: Tensor, pred: Tensor, pred_labels: Tensor, ignored: Tensor
) -> tuple[list[float], int]:
    """Gives each predicted box, in order, the object of its class that it covers best and that no earlier one has.

    Args:
        gt: [G, 4] as x1, y1, x2, y2.
        gt_labels: [G]
        pred: [P, 4]
        pred_labels: [P]
        ignored: [I, 4]; a prediction that lies in one with at least half of its area is neither right nor false.

    Returns:
        The IoUs of the right predictions, and the number of false ones.
    """
    overlaps = _overlaps(pred, gt)
    areas = (pred[:, 2:] - pred[:, :2]).clamp(min=0).prod(1)
    iou = overlaps / (areas[:, None] + (gt[:, 2:] - gt[:, :2]).clamp(min=0).prod(1)[None] - overlaps).clamp(min=1e-9)
    iou[pred_labels[:, None] != gt_labels[None]] = 0
    inside = (_overlaps(pred, ignored) / areas[:, None].clamp(min=1e-9) >= 0.5).any(1)
    ious, false = [], 0
    for index in range(len(pred)):
        value, best = iou[index].max(0) if len(gt) else (torch.tensor(0.0), None)
        if value >= MATCHED:
            ious.append(float(value))
            iou[:, best] = 0
        elif not inside[index]:
            false += 1
    return ious, false


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Common areas of boxes, [A, 4] and [B, 4] -> [A, B]."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clamp(min=0).prod(-1)


def _score_map(sample: Any, num_classes: int | None) -> ImageScore:
    gt, pred = (next(iter(sample.get(key).values())).cpu().long() for key in ('gt_sem_seg', 'pred_sem_seg'))
    gt, pred = gt.reshape(-1, *gt.shape[-2:])[0], pred.reshape(-1, *pred.shape[-2:])[0]
    num = num_classes or int(pred.max()) + 1
    known = (gt >= 0) & (gt < num)  # 255 is no class
    if not known.any():
        return ImageScore(float('nan'), 'no labelled pixel')
    gt, pred = gt[known], pred[known]
    counts = torch.bincount(gt * num + pred, minlength=num * num).reshape(num, num)  # ground truth, prediction
    both = counts.diag()
    either = counts.sum(0) + counts.sum(1) - both
    value = float((both[either > 0] / either[either > 0]).mean())
    return ImageScore(value, f'mIoU {value:.2f} over {int((either > 0).sum())} classes, {_percent(both, counts)} right')


def _percent(both: Tensor, counts: Tensor) -> str:
    return f'{100 * float(both.sum() / counts.sum()):.0f} % of the pixels'
