"""Heads that look at proposals: mmdet's StandardRoIHead and CascadeRoIHead, with boxes and masks.

Their networks are called; pooling, refinement, choice and suppression are expressed anew for batches. Every image has
as many rows; a row that holds nothing is computed with, as a box of one pixel, and left out by its score.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..box_operators import ABSENT, roi_levels
from .boxes import Decoder, Suppression, best, is_present, rows_of
from .refusing import Unsupported, behaves_as, refuse_settings

__all__ = ['RoIDetector', 'roi_detector']

STANDARD = ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward')
CASCADE = (*STANDARD, '_refine_roi')
BOX_HEAD = ('predict_by_feat', '_predict_by_feat_single', 'regress_by_class', 'custom_activation')
MASK_HEAD = ('predict_by_feat', '_predict_by_feat_single')
TEST_CFG = ('score_thr', 'nms', 'max_per_img', 'mask_thr_binary')


class Pooling(nn.Module):
    """Features of boxes, each from its level of the pyramid (mmdet's SingleRoIExtractor over RoIAlign).

    Args:
        extractor: Of the head.
        where: What it is called in messages.
    """

    def __init__(self, extractor: nn.Module, where: str) -> None:
        super().__init__()
        from mmdet.models.roi_heads import SingleRoIExtractor

        if not behaves_as(extractor, SingleRoIExtractor, ('forward', 'map_roi_levels')):
            raise Unsupported(f'{where} is a {type(extractor).__name__}', ['SingleRoIExtractor'])
        layers = extractor.roi_layers
        if type(layers[0]).__name__ != 'RoIAlign':
            raise Unsupported(f'{where} pools by {type(layers[0]).__name__}', ['RoIAlign with aligned=True'])
        refuse_settings(f'RoIAlign of the {where}', vars(layers[0]), {'aligned': True, 'pool_mode': 'avg'})
        self.scales = [float(layer.spatial_scale) for layer in layers]
        self.size = tuple(map(int, layers[0].output_size))
        self.sampling_ratio = int(layers[0].sampling_ratio)
        self.finest = extractor.finest_scale

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Maps [B, C, H, W] and boxes [B, N, 4] -> [B * N, C, height, width]; zeros for a box without area."""
        B, N, _ = boxes.shape
        empty = (boxes[..., 2:] <= boxes[..., :2]).any(-1, keepdim=True)  # [B, N, 1]; OpenVINO pools them to NaN
        boxes = torch.where(empty, boxes.new_tensor([0.0, 0.0, 1.0, 1.0]), boxes)
        image = torch.arange(B).to(boxes)[:, None, None].expand(B, N, 1)
        rois = torch.cat((image, boxes), dim=-1).reshape(B * N, 5)
        levels = torch.zeros_like(rois[:, 0], dtype=torch.int64)
        if len(self.scales) > 1:
            scale = torch.sqrt((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2]))
            levels = torch.floor(torch.log2(scale / self.finest + 1e-6)).clamp(0, len(self.scales) - 1).long()
        maps = list(maps[: len(self.scales)])
        pooled = roi_levels(maps, rois, levels, self.scales, self.size, self.sampling_ratio)
        return torch.where(empty.reshape(B * N, 1, 1, 1), torch.zeros_like(pooled), pooled)


class _Stage(nn.Module):
    """Pooling and a head.

    Args:
        pooling: Of the boxes.
        head: What looks at the features.
        shared: What comes between them; None for nothing.
    """

    def __init__(self, pooling: Pooling, head: nn.Module, shared: nn.Module | None) -> None:
        super().__init__()
        self.pooling = pooling
        self.shared = shared
        self.head = head

    def looked_at(self, maps: Sequence[Tensor], boxes: Tensor) -> Any:
        """What the head says of boxes [B, N, 4], as B * N rows."""
        x = self.pooling(maps, boxes)
        return self.head(x if self.shared is None else self.shared(x))


class BoxStage(_Stage):
    """Pooling by an extractor, and a box head, which is refused by name where it predicts otherwise than mmdet's."""

    def __init__(self, extractor: nn.Module, head: nn.Module, shared: nn.Module | None) -> None:
        from mmdet.models.roi_heads import BBoxHead

        if not behaves_as(head, BBoxHead, BOX_HEAD):
            raise Unsupported(f'bbox_head is a {type(head).__name__}', ['BBoxHead', 'ConvFCBBoxHead'])
        refuse_settings('bbox_head', vars(head), {'with_cls': True, 'with_reg': True, 'predict_box_type': 'hbox'})
        if head.custom_cls_channels or head.custom_activation:
            raise Unsupported(f'loss_cls of the bbox_head is a {type(head.loss_cls).__name__}', ['CrossEntropyLoss'])
        super().__init__(Pooling(extractor, 'bbox_roi_extractor'), head, shared)
        self.decoder = Decoder(head.bbox_coder, 'bbox_head')

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4] -> logits [B, N, classes + 1] and deltas [B, N, classes or 1, 4]."""
        B, N, _ = boxes.shape
        logits, deltas = self.looked_at(maps, boxes)
        return logits.reshape(B, N, -1), deltas.reshape(B, N, -1, 4)

    def refined(self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        """Boxes [B, N, 4] for the next stage: those of the likeliest class."""
        if not self.head.reg_class_agnostic:
            label = logits[..., :-1].argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
            deltas = deltas.gather(2, label)
        return self.decoder(boxes, deltas[:, :, 0], size)


class MaskStage(_Stage):
    """Pooling by an extractor, and a mask head, which is refused by name where it predicts otherwise than mmdet's."""

    def __init__(self, extractor: nn.Module, head: nn.Module, shared: nn.Module | None) -> None:
        from mmdet.models.roi_heads import FCNMaskHead

        if not behaves_as(head, FCNMaskHead, MASK_HEAD):
            raise Unsupported(f'mask_head is a {type(head).__name__}', ['FCNMaskHead'])
        refuse_settings('mask_head', vars(head), {'upsample_method': (None, 'deconv', 'nearest', 'bilinear')})
        super().__init__(Pooling(extractor, 'mask_roi_extractor'), head, shared)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Boxes [B, N, 4] and their labels [B, N] -> probabilities [B, N, height, width]."""
        B, N, _ = boxes.shape
        logits = self.looked_at(maps, boxes)  # [B * N, classes or 1, height, width]
        K, C, height, width = logits.shape
        label = torch.zeros_like(labels) if self.head.class_agnostic else labels
        chosen = torch.arange(K) * C + label.reshape(-1)
        return logits.reshape(K * C, height, width)[chosen].sigmoid().reshape(B, N, height, width)


class RoIDetector(nn.Module):
    """The objects that one or several stages find among proposals, and their masks.

    Args:
        head: mmdet's, whose settings are followed.
        boxes: The stages of boxes, of which each but the last refines them.
        masks: Those of masks, of which the mean is taken; empty without masks.
    """

    def __init__(self, head: nn.Module, boxes: Sequence[BoxStage], masks: Sequence[MaskStage]) -> None:
        super().__init__()
        self.boxes = nn.ModuleList(boxes)
        self.masks = nn.ModuleList(masks)
        self.suppression = Suppression.of(head.test_cfg, 'roi_head')
        self.register_buffer('score_thr', torch.tensor(float(head.test_cfg.score_thr)))

    def forward(
        self, maps: tuple[Tensor, ...], boxes: Tensor, scores: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Proposals [B, P, 4] and their scores [B, P] -> boxes [B, N, 4], scores [B, N], labels [B, N].

        `ABSENT` is the score of rows without a box.
        """
        total = 0
        for n, stage in enumerate(self.boxes):
            logits, deltas = stage(maps, boxes)
            total = total + logits
            if n + 1 < len(self.boxes):
                boxes = stage.refined(boxes, logits, deltas, size)
        likely = (total / float(len(self.boxes))).softmax(-1)[..., :-1]  # [B, P, C]
        likely = torch.where(
            is_present(scores)[..., None] & (likely > self.score_thr), likely, torch.full_like(likely, ABSENT)
        )
        B, P, C = likely.shape
        boxes = stage.decoder(boxes[:, :, None].expand(-1, -1, deltas.shape[2], -1), deltas, size)
        boxes = boxes.expand(-1, -1, C, -1)
        kept = self.suppression(boxes.transpose(1, 2), likely.transpose(1, 2), torch.arange(C)[:, None])
        boxes, likely, kept = boxes.reshape(B, P * C, 4), likely.reshape(B, P * C), kept.transpose(1, 2)
        kept = self.suppression.over_groups(boxes, likely, kept.reshape(B, P * C))
        scores, rows = best(kept, self.suppression.most)
        return rows_of(boxes, rows), scores, rows % C

    def mask(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        """Masks [B, N, height, width] of objects."""
        masks = [stage(maps, boxes, labels) for stage in self.masks]
        return masks[0] if len(masks) == 1 else torch.stack(masks).mean(0)


def roi_detector(head: nn.Module) -> RoIDetector:
    """Of a RoI head, which is refused by name unless it predicts as mmdet's StandardRoIHead or CascadeRoIHead."""
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead

    if not (behaves_as(head, StandardRoIHead, STANDARD) or behaves_as(head, CascadeRoIHead, CASCADE)):
        raise Unsupported(f'roi_head is a {type(head).__name__}', ['StandardRoIHead', 'CascadeRoIHead'])
    if not head.with_bbox:
        raise Unsupported(f'roi_head {type(head).__name__} has no bbox_head', ['StandardRoIHead', 'CascadeRoIHead'])
    shared = head.shared_head if head.with_shared_head else None
    boxes = [BoxStage(*stage, shared) for stage in _stages(head.bbox_roi_extractor, head.bbox_head)]
    masks = []
    if head.with_mask:
        masks = [MaskStage(*stage, shared) for stage in _stages(head.mask_roi_extractor, head.mask_head)]
    return RoIDetector(head, boxes, masks)


def _stages(extractors: Any, heads: Any) -> list[tuple[nn.Module, nn.Module]]:
    """The pairs of a cascade, or the only one."""
    if isinstance(heads, nn.ModuleList):
        return list(zip(extractors, heads, strict=True))
    return [(extractors, heads)]
