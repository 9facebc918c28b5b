"""Heads that predict at every place of a pyramid: mmdet's RPNHead and RetinaHead.

Both are an AnchorHead: the convolutions are called, anchors, choice of the best, decoding and suppression are expressed
anew for batches, with as many rows for every image.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..box_operators import ABSENT
from .boxes import Decoder, Suppression, best, rows_of
from .refusing import Unsupported, behaves_as

__all__ = ['DenseDetector', 'Proposals', 'dense_detector', 'proposals']


METHODS = ('predict', 'forward', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')


class _Dense(nn.Module):
    """What both have in common.

    Args:
        head: The head of mmdet.
        where: What it is called in messages.
    """

    def __init__(self, head: nn.Module, where: str) -> None:
        super().__init__()
        settings: Mapping[str, Any] = head.test_cfg
        anchors = head.prior_generator
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            raise Unsupported(f'loss_cls of the {where} is a {type(head.loss_cls).__name__}', ['sigmoid', 'softmax'])
        self.head = head
        self.decoder = Decoder(head.bbox_coder, where)
        self.suppression = Suppression.of(settings, where)
        self.candidates = int(settings.get('nms_pre', -1))
        if self.candidates <= 0:
            raise Unsupported(
                f'test_cfg of the {where} has nms_pre={self.candidates}', ['a number of boxes of a level']
            )
        self.least_edge = float(settings.get('min_bbox_size', -1))
        self.strides = [tuple(map(float, stride)) for stride in anchors.strides]
        for level, boxes in enumerate(anchors.base_anchors):
            self.register_buffer(f'anchors{level}', boxes.detach().float().clone())

    def anchors(self, level: int, H: int, W: int) -> Tensor:
        """The anchors of a level of H x W places, row by row: [H * W * A, 4]."""
        base, (step_x, step_y) = getattr(self, f'anchors{level}'), self.strides[level]
        x = (torch.arange(W).to(base) * step_x)[None, :, None, None]
        y = (torch.arange(H).to(base) * step_y)[:, None, None, None]
        shift = torch.cat(torch.broadcast_tensors(x, y), dim=-1)  # [H, W, 1, 2]
        return (base + torch.cat((shift, shift), dim=-1)).reshape(-1, 4)

    def levels(self, maps: tuple[Tensor, ...], threshold: Tensor | None) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The candidates of each level, best first.

        Args:
            maps: [B, C, H, W] of each level.
            threshold: Scores up to it are dropped.

        Returns:
            For each level scores [B, K], labels [B, K], anchors [B, K, 4] and deltas [B, K, 4].
        """
        found = []
        for level, (logits, deltas) in enumerate(zip(*self.head(maps), strict=True)):
            B, _, H, W = logits.shape
            logits = logits.permute(0, 2, 3, 1).reshape(B, -1, self.head.cls_out_channels)
            scores = logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(-1)[..., :-1]
            C = scores.shape[2]
            scores = scores.reshape(B, -1)
            if threshold is not None:
                scores = torch.where(scores > threshold, scores, torch.full_like(scores, ABSENT))
            scores, rows = best(scores, self.candidates)
            deltas = rows_of(deltas.permute(0, 2, 3, 1).reshape(B, -1, 4), rows // C)
            found.append((scores, rows % C, self.anchors(level, H, W)[rows // C], deltas))
        return found

    def large(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """The scores, without those of boxes that a config calls too small."""
        if self.least_edge < 0:
            return scores
        edges = boxes[..., 2:] - boxes[..., :2]
        return torch.where((edges > self.least_edge).all(-1), scores, torch.full_like(scores, ABSENT))


class Proposals(_Dense):
    """The boxes that a region proposal network proposes, by falling score."""

    @property
    def count(self) -> int:
        """Rows of an image."""
        return self.suppression.most

    def forward(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Maps of images of size (H, W) -> boxes [B, count, 4], scores [B, count]; `ABSENT` for rows without a box."""
        scores, _, anchors, deltas = (torch.stack(parts, dim=1) for parts in zip(*self.levels(maps, None), strict=True))
        boxes = self.decoder(anchors, deltas, size)  # [B, levels, K, 4]
        B, L, K = scores.shape
        scores, boxes_in_order = self.large(boxes, scores), boxes.reshape(B, L * K, 4)
        kept = self.suppression(boxes, scores, torch.arange(L)[:, None]).reshape(B, L * K)
        kept = self.suppression.over_groups(boxes_in_order, scores.reshape(B, L * K), kept)
        scores, rows = best(kept, self.count)
        return rows_of(boxes_in_order, rows), scores


class DenseDetector(_Dense):
    """The objects that a head of one stage finds."""

    def __init__(self, head: nn.Module, where: str) -> None:
        super().__init__(head, where)
        self.register_buffer('score_thr', torch.tensor(float(head.test_cfg.get('score_thr', 0))))

    def forward(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps -> boxes [B, N, 4], scores [B, N], labels [B, N]; `ABSENT` is the score of rows without a box."""
        found = (torch.cat(parts, dim=1) for parts in zip(*self.levels(maps, self.score_thr), strict=True))
        scores, labels, anchors, deltas = found
        boxes = self.decoder(anchors, deltas, size)
        scores = self.large(boxes, scores)
        kept = self.suppression(boxes[:, None], scores[:, None], labels[:, None])[:, 0]
        scores, rows = best(self.suppression.over_groups(boxes, scores, kept), self.suppression.most)
        return rows_of(boxes, rows), scores, labels.gather(1, rows)


def proposals(head: nn.Module) -> Proposals:
    """Of a region proposal head, which is refused by name where it does not predict as mmdet's RPNHead."""
    from mmdet.models.dense_heads import RPNHead

    _check(head, RPNHead, 'rpn_head')
    return Proposals(head, 'rpn_head')


def dense_detector(head: nn.Module) -> DenseDetector:
    """Of a head of one stage, which is refused by name where it does not predict as mmdet's RetinaHead."""
    from mmdet.models.dense_heads import RetinaHead

    _check(head, RetinaHead, 'bbox_head')
    return DenseDetector(head, 'bbox_head')


def _check(head: nn.Module, reference: type, where: str) -> None:
    from mmdet.models.task_modules import AnchorGenerator

    if not behaves_as(head, reference, METHODS):
        raise Unsupported(f'{where} is a {type(head).__name__}', [reference.__name__])
    anchors = head.prior_generator
    if not behaves_as(anchors, AnchorGenerator, ('grid_priors', 'single_level_grid_priors')):
        raise Unsupported(f'anchor_generator of the {where} is a {type(anchors).__name__}', ['AnchorGenerator'])
