"""Arithmetic of boxes as mmdet does it, in its order of operations, on batches of rows of which some hold nothing."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..box_operators import ABSENT, nms_keep, top_k
from .refusing import Unsupported, refuse_settings

__all__ = ['Decoder', 'Suppression', 'best', 'is_present', 'rows_of']

RATIO = abs(math.log(16 / 1000))  # largest change of a width, as a logarithm; mmdet's coder has it as a default


def is_present(scores: Tensor) -> Tensor:
    """Which rows hold something."""
    return scores > ABSENT / 2


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores [B, N] and their indices, 0 for rows that hold nothing; N may be less than k."""
    n = scores.shape[1]
    if not isinstance(n, int) or n < k:
        scores = F.pad(scores, (0, k), value=ABSENT)
    scores, rows = top_k(scores, k)
    return scores, torch.where(is_present(scores), rows, torch.zeros_like(rows))


def rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Rows [B, k] of x [B, N, C]: [B, k, C]."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))


class Decoder(nn.Module):
    """Boxes from boxes and what a network says about their change (mmdet's DeltaXYWHBBoxCoder).

    Args:
        coder: Of the head.
        where: What the head is called in messages.
    """

    def __init__(self, coder: Any, where: str) -> None:
        super().__init__()
        if type(coder).__name__ != 'DeltaXYWHBBoxCoder':
            raise Unsupported(f'bbox_coder of the {where} is a {type(coder).__name__}', ['DeltaXYWHBBoxCoder'])
        refuse_settings(f'bbox_coder of the {where}', vars(coder), {'clip_border': True, 'add_ctr_clamp': False})
        self.register_buffer('means', torch.tensor(coder.means, dtype=torch.float32))
        self.register_buffer('stds', torch.tensor(coder.stds, dtype=torch.float32))

    def forward(self, boxes: Tensor, deltas: Tensor, size: tuple[int, int]) -> Tensor:
        """boxes [..., 4], deltas [..., 4] -> [..., 4], clipped to images of size (H, W)."""
        H, W = size
        deltas = deltas * self.stds + self.means
        centre, edges = (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]
        centre = centre + edges * deltas[..., :2]
        edges = edges * deltas[..., 2:].clamp(-RATIO, RATIO).exp()
        x1, y1 = (centre - edges * 0.5).unbind(-1)
        x2, y2 = (centre + edges * 0.5).unbind(-1)
        return torch.stack((x1.clamp(0, W), y1.clamp(0, H), x2.clamp(0, W), y2.clamp(0, H)), dim=-1)


class Suppression(NamedTuple):
    """Non-maximum suppression with the settings of a config, as mmcv's `batched_nms`.

    Attributes:
        iou_threshold: Overlap above which the worse of two boxes is dropped.
        agnostic: Boxes of different groups suppress each other, too.
        split: Boxes of an image from which on they do not.
        most: Boxes that are kept of an image.
    """

    iou_threshold: float
    agnostic: bool
    split: int
    most: int

    @classmethod
    def of(cls, settings: Mapping[str, Any], where: str) -> 'Suppression':
        """From the ``test_cfg`` of a head."""
        nms = dict(settings.get('nms') or {'type': None})
        refuse_settings(f'nms of the {where}', nms, {'type': 'nms'})
        threshold = nms.get('iou_threshold', nms.get('iou_thr'))
        others = sorted(nms.keys() - {'type', 'iou_threshold', 'iou_thr', 'split_thr', 'class_agnostic'})
        if threshold is None or others:
            raise Unsupported(f'nms of the {where} is {nms}', ["type='nms' with iou_threshold and class_agnostic"])
        most = settings.get('max_per_img', -1)
        if most <= 0:
            raise Unsupported(f'test_cfg of the {where} has max_per_img={most}', ['a number of boxes'])
        split = int(nms.get('split_thr', 10000))
        return cls(float(threshold), bool(nms.get('class_agnostic')), split, int(most))

    def __call__(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        """The scores of boxes that are kept, `ABSENT` elsewhere.

        Boxes are shifted apart by their group as mmcv does it, whose rounding decides which of them overlap enough.

        Args:
            boxes: [B, G, N, 4].
            scores: [B, G, N].
            groups: Numbers of classes or levels, to be broadcast with `scores`. Rows of different G never meet, and
                those of one G where their groups are the same.
        """
        N = scores.shape[2]
        present = torch.where(is_present(scores)[..., None], boxes, torch.zeros_like(boxes))
        step = present.amax(dim=(1, 2, 3)) + 1  # [B], further than any box reaches
        apart = boxes + (groups.to(boxes) * step[:, None, None])[..., None]
        kept = nms_keep(apart.reshape(-1, N, 4), scores.reshape(-1, N), self.most, self.iou_threshold)
        return kept.reshape(scores.shape)

    def over_groups(self, boxes: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
        """What is kept with `agnostic`; as `kept` without it, and for images with too many boxes.

        Args:
            boxes: [B, N, 4].
            scores: [B, N].
            kept: [B, N], with groups told apart.
        """
        if not self.agnostic:
            return kept
        few = is_present(scores).sum(dim=1, keepdim=True) < self.split
        return torch.where(few, nms_keep(boxes, scores, self.most, self.iou_threshold), kept)
