"""Detectors of mmdet: with a RetinaHead, or with an RPNHead and a StandardRoIHead or CascadeRoIHead."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..recording import BackboneWithNeck
from .boxes import is_present
from .dense import dense_detector, proposals
from .matching import compare_detections
from .refusing import Unsupported, behaves_as
from .roi import roi_detector
from .task import Row, Task, as_written

__all__ = ['Detection', 'build']

KINDS = (
    'SingleStageDetector with a RetinaHead',
    'TwoStageDetector with an RPNHead and a StandardRoIHead or CascadeRoIHead',
)


class Detection(Task):
    """A detector of one or of two stages.

    Outputs are ``dets`` [B, N, 5], x1, y1, x2, y2 in pixels of the image before padding and the score, by falling
    score; ``labels`` [B, N] int64, -1 for rows without an object, whose det is zeros; where the detector has masks also
    ``masks`` [B, N, 28, 28], probabilities inside of the box.

    Args:
        model: The detector.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.maps = BackboneWithNeck(model.backbone, model.neck if model.with_neck else None)
        two_stages = hasattr(model, 'roi_head')
        self.proposals = proposals(model.rpn_head) if two_stages else None
        self.detector = roi_detector(model.roi_head) if two_stages else dense_detector(model.bbox_head)
        self.with_masks = two_stages and len(self.detector.masks) > 0
        self.task = 'instance segmentation' if self.with_masks else 'detection'
        self.outputs = ('dets', 'labels', 'masks') if self.with_masks else ('dets', 'labels')
        self.mask_thr = float(model.roi_head.test_cfg.mask_thr_binary) if self.with_masks else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        maps = self.maps(x)
        if self.proposals is None:
            boxes, scores, labels = self.detector(maps, size)
        else:
            boxes, scores, labels = self.detector(maps, *self.proposals(maps, size), size)
        present = is_present(scores)
        dets = torch.cat((boxes, scores[..., None]), dim=-1)
        dets = torch.where(present[..., None], dets, torch.zeros_like(dets))
        outputs = dets, torch.where(present, labels, torch.full_like(labels, -1))
        if not self.with_masks:
            return outputs
        masks = self.detector.mask(maps, dets[..., :4], labels)
        return *outputs, torch.where(present[..., None, None], masks, torch.zeros_like(masks))

    def settings(self) -> dict[str, Any]:
        suppression = self.detector.suppression
        settings = {
            'score_thr': as_written(self.detector.score_thr)[0],
            'iou_thr': suppression.iou_threshold,
            'max_per_img': suppression.most,
        }
        return settings | ({'mask_thr': self.mask_thr} if self.with_masks else {})

    def new_sample(self) -> Any:
        from mmdet.structures import DetDataSample

        return DetDataSample()

    def compare(self, samples: Sequence[Any], outputs: Sequence[Tensor], size: tuple[int, int]) -> list[Row]:
        found, full = [sample.pred_instances for sample in samples], self.detector.suppression.most
        return compare_detections(found, outputs, size, full, self.detector.score_thr.item(), self.mask_thr)

    def without_thresholds(self, model: nn.Module) -> dict[str, float]:
        head = model.bbox_head if self.proposals is None else model.roi_head
        head.test_cfg.score_thr = 0.0
        return {'detector.score_thr': 0.0}


def build(model: nn.Module) -> Detection:
    """A detector as a `Task`.

    Raises:
        UserError: for one that does not predict as a RetinaNet or a (Cascade, Mask) R-CNN, and for its parts, by name.
    """
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector

    methods = ('predict', 'extract_feat')
    one_stage = behaves_as(model, SingleStageDetector, methods)
    two_stages = behaves_as(model, TwoStageDetector, methods) and model.with_rpn and model.with_roi_head
    if not one_stage and not two_stages:
        raise Unsupported(f'model is a {type(model).__name__}', KINDS)
    return Detection(model)
