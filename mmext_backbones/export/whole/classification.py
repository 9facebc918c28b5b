"""mmpretrain's classifiers as one graph: what `ImageClassifier.predict` computes, for any size and number of images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checking import TOLERANCE
from ..recording import BackboneWithNeck
from .pooling import pool_at_any_size
from .refusing import Unsupported, behaves_as, title
from .task import Row, Task

KNOWN = ('LinearClsHead', 'MultiLabelLinearClsHead', 'heads with the predict of either')


def build(model: nn.Module) -> 'Classification':
    """The task of a classifier, whose pools of a fixed number of areas are replaced by those of `pooling`.

    Raises:
        UserError: for another classifier than mmpretrain's ImageClassifier (or ours, which is one), or for a head that
            makes of its scores something else than a softmax or sigmoids.
    """
    from mmpretrain.models import ImageClassifier

    if not behaves_as(model, ImageClassifier, ('predict', 'extract_feat')):
        raise Unsupported(f'its model is a {title(model)}', [ImageClassifier.__name__])
    return pool_at_any_size(Classification(model, find_normalisation(model.head)))


class Classification(Task):
    """Scores of the classes, [B, classes]: a softmax, or sigmoids where the head is multi-label.

    Padding takes part in them, as in mmpretrain.
    """

    task = 'classification'
    outputs = ('scores',)

    def __init__(self, model: nn.Module, normalise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.maps = BackboneWithNeck(model.backbone, model.neck)
        self.head = model.head
        self.normalise = normalise

    def forward(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        return (self.normalise(self.head(self.maps(x))),)

    def settings(self) -> dict[str, Any]:
        if self.normalise is not torch.sigmoid:
            return {'multi_label': False}
        return {'multi_label': True, 'score_thr': self.head.thr, 'topk': self.head.topk}

    def new_sample(self) -> Any:
        from mmpretrain.structures import DataSample

        return DataSample()

    def compare(self, samples: Sequence[Any], outputs: Sequence[Tensor], size: tuple[int, int]) -> list[Row]:
        """The largest difference of the scores, by the largest score."""
        theirs = torch.stack([sample.pred_score for sample in samples])
        difference = (outputs[0] - theirs).abs().max() / theirs.max()
        return [Row(size, len(samples), 'scores', difference.item(), TOLERANCE, theirs.numel())]


def find_normalisation(head: nn.Module | None) -> Callable[[Tensor], Tensor]:
    """What a head makes of its scores: a softmax or sigmoids.

    Raises:
        UserError: where it is neither, or there is no head.
    """
    from mmpretrain.models.heads import ClsHead, MultiLabelClsHead

    for cls, normalise in ((ClsHead, _softmax), (MultiLabelClsHead, torch.sigmoid)):
        if behaves_as(head, cls, ('predict', '_get_predictions')):
            return normalise
    what = 'it has no head' if head is None else f'its head is a {title(head)}'
    raise Unsupported(what, KNOWN)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=1)
