"""Image classification through mmpretrain: the heads that MaxViT and Sequencer have, and a classifier that loads the
published weights of all four families. Swin and ELSA-Swin need no head of their own: mean over the normed map, linear.

Sources as in the backbones' modules.
"""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier as MMImageClassifier
from mmpretrain.models.heads import LinearClsHead
from torch import Tensor, nn

from .registry import MODELS
from .weights.classifiers import fit_classifier
from .weights.fitting import unwrap
from .weights.layouts import family_of


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
        family = family_of(type(self.backbone))
        fitted = fit_classifier(unwrap(state_dict, source), self.state_dict(), family, source)
        if fitted is None:
            return None
        tensors, report = fitted
        print_log(f'{type(self).__name__}: published classifier\n{report}', logger='current')
        return tensors

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        tensors = None if prefix else self.own_weights(state_dict, 'the state dict')
        if tensors is not None:
            state_dict.clear()
            state_dict.update(tensors)
        super()._load_from_state_dict(state_dict, prefix, *args)
