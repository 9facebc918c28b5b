"""Image classification through mmpretrain: the heads that MaxViT, Sequencer and VOLO have, and a classifier that loads
the published weights of every family. Swin and ELSA-Swin need no head of their own: mean over the normed map, linear.

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

from .layers import ClassBlock
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
class VOLOClsHead(LinearClsHead):
    """Two class-attention blocks, then scores of the image and of every token: maps [B, C, H, W] -> [B, num_classes].

    The score of a class is that of the class token plus half of the largest among the tokens. In training the tokens
    learn the label of their image, with half the weight of the class token. (The authors' tokens learn labels of their
    own, which a teacher network wrote into files.)

    Source: Yuan et al., "VOLO" (arXiv 2106.13112), section 3.2, and the authors' code.

    Args:
        num_classes: classes.
        in_channels: C, channels of the last map.
        num_heads: heads of the class attention.
        mlp_ratio: hidden width of its perceptrons over C.
        **kwargs: of mmpretrain's `LinearClsHead` (loss, cal_acc, topk, init_cfg).
    """

    BLOCKS, TOKEN_WEIGHT = 2, 0.5

    def __init__(self, num_classes: int, in_channels: int, num_heads: int, mlp_ratio: float = 3, **kwargs: Any) -> None:
        kwargs.setdefault('init_cfg', {'type': 'TruncNormal', 'layer': 'Linear', 'std': 0.02})
        super().__init__(num_classes, in_channels, **kwargs)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, in_channels))
        self.blocks = nn.ModuleList(ClassBlock(in_channels, num_heads, mlp_ratio) for _ in range(self.BLOCKS))
        self.norm = nn.LayerNorm(in_channels)
        self.aux_fc = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def pre_logits(self, feats: Sequence[Tensor]) -> Tensor:
        """The normed class token and tokens, [B, 1 + H * W, C]."""
        tokens = feats[-1].flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def scores(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores of the class token, [B, num_classes], and of the tokens, [B, H * W, num_classes]."""
        x = self.pre_logits(feats)
        return self.fc(x[:, 0]), self.aux_fc(x[:, 1:])

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        scores, of_tokens = self.scores(feats)
        return scores + self.TOKEN_WEIGHT * of_tokens.amax(dim=1)

    def loss(self, feats: Sequence[Tensor], data_samples: list[Any], **kwargs: Any) -> dict[str, Tensor]:
        scores, of_tokens = self.scores(feats)
        losses = self._get_loss(scores, data_samples, **kwargs)
        mixed = 'gt_score' in data_samples[0]  # by batch augmentations; mmpretrain's own question
        labels = (
            torch.stack([s.gt_score for s in data_samples]) if mixed else torch.cat([s.gt_label for s in data_samples])
        )
        of_tokens, labels = of_tokens.flatten(0, 1), labels.repeat_interleave(of_tokens.shape[1], dim=0)
        losses['loss_tokens'] = self.TOKEN_WEIGHT * self.loss_module(
            of_tokens, labels, avg_factor=len(of_tokens), **kwargs
        )
        return losses


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
