"""Image classification through mmpretrain: the heads that MaxViT and Sequencer have, and a classifier that loads the
published weights of all four families. Swin and ELSA-Swin need no head of their own: mean over the normed map, linear.

Sources as in the backbones' modules.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier as MMImageClassifier
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from .registry import MODELS
from .weights.classifiers import fit_classifier
from .weights.fitting import Report, unwrap
from .weights.layouts import family_of


@functools.lru_cache(maxsize=8)
def _tell(report: str) -> None:
    """Once: an average of the weights loads the same file again."""
    print_log(report, logger='current')


@MODELS.register_module()
class MaxViTClsHead(LinearClsHead):
    """Mean over the map, norm, a hidden layer with tanh, linear: maps [B, C, H, W] -> scores [B, num_classes].

    Args:
        num_classes: classes.
        in_channels: C, channels of the last map; the hidden layer has as many.
        **kwargs: of mmpretrain's `LinearClsHead` (loss, cal_acc, topk, init_cfg).
    """

    def __init__(self, num_classes: int, in_channels: int, **kwargs: Any) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.norm = nn.LayerNorm(in_channels, eps=1e-5)
        self.hidden = nn.Linear(in_channels, in_channels)

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        return torch.tanh(self.hidden(self.norm(feats[-1].mean(dim=(2, 3)))))


@MODELS.register_module()
class SequencerClsHead(LinearClsHead):
    """Norm of every token, mean, linear: maps [B, C, H, W] -> scores [B, num_classes].

    Args:
        num_classes: classes.
        in_channels: C, channels of the last map.
        **kwargs: of mmpretrain's `LinearClsHead` (loss, cal_acc, topk, init_cfg).
    """

    def __init__(self, num_classes: int, in_channels: int, **kwargs: Any) -> None:
        super().__init__(num_classes, in_channels, **kwargs)
        self.norm = nn.LayerNorm(in_channels, eps=1e-6)

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        return self.norm(feats[-1].permute(0, 2, 3, 1)).mean(dim=(1, 2))


@MODELS.register_module()
class ImageClassifier(MMImageClassifier):
    """mmpretrain's, and loading it from a published classifier of its backbone's family fills backbone and head.

    Raises:
        WeightsError: on loading, if the file is such a classifier but does not fit this one. Nothing has been loaded.
    """

    def own_weights(self, state_dict: dict[str, Any], source: str) -> dict[str, Tensor] | None:
        """The tensors of a published classifier by our names; None where there is nothing to convert."""
        fitted = self._fit(state_dict, source)
        return None if fitted is None else fitted[0]

    def _fit(self, state_dict: dict[str, Any], source: str) -> tuple[dict[str, Tensor], Report] | None:
        return fit_classifier(unwrap(state_dict, source), self.state_dict(), family_of(type(self.backbone)), source)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        fitted = None if prefix else self._fit(state_dict, 'the state dict')
        if fitted is not None:
            tensors, report = fitted
            _tell(f'{type(self).__name__}: published classifier\n{report}')
            state_dict.clear()
            state_dict.update(tensors)
        super()._load_from_state_dict(state_dict, prefix, *args)
