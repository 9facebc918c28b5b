"""What classifiers of ImageNet-1K are measured by on ImageNet-C, -A and -R."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ...datasets.imagenet_c import ALEXNET_ERRORS, CORRUPTIONS, SEVERITIES, corruption_of
from ...datasets.imagenet_subsets import subset_numbers
from ...registry import METRICS
from ...utils.errors import UserError

__all__ = ['CorruptionError', 'SubsetAccuracy']


@METRICS.register_module()
class CorruptionError(BaseMetric):
    """Mean corruption error on ImageNet-C, in percent: AlexNet's is 100.

    The error of a corruption is the mean over its severities of the share of images whose best class is wrong, over
    AlexNet's mean; mCE is the mean over the 15 corruptions. Corruption and severity are read from an image's path.

    Metrics: ``mCE``; ``error``, the same without AlexNet's; the corruption error of each corruption, by its name. On a
    part of ImageNet-C ``error`` is of that part, ``mCE`` is left out, and so are corruptions without all five
    severities: AlexNet's means are over those.

    Source: Hendrycks and Dietterich (arXiv 1903.12261), section 4.

    Args:
        collect_device: Where the results of several processes are joined, 'cpu' or 'gpu'.
        prefix: Before the names of the metrics.
    """

    default_prefix = 'corruption'

    def __init__(self, collect_device: str = 'cpu', prefix: str | None = None) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps a small number an image, of which ImageNet-C has 3.75 million.

        Raises:
            UserError: for an image that is none of ImageNet-C's.
        """
        for sample in data_samples:
            found = corruption_of(sample.get('img_path') or '')
            if found is None:
                raise UserError(
                    f'CorruptionError: {sample.get("img_path")} is no image of ImageNet-C: expected '
                    'CORRUPTION/SEVERITY/CLASS/IMAGE at the end of its path.'
                )
            right = int(sample['pred_score'].argmax()) == int(sample['gt_label'])
            cell = CORRUPTIONS.index(found[0]) * len(SEVERITIES) + SEVERITIES.index(found[1])
            self.results.append(2 * cell + right)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """The metrics from one number an image: twice its part of the data, and 1 if its best class is right."""
        counts = torch.bincount(torch.tensor(results), minlength=2 * len(CORRUPTIONS) * len(SEVERITIES))
        wrong, right = counts.view(len(CORRUPTIONS), len(SEVERITIES), 2).double().unbind(-1)
        errors = wrong / (wrong + right)  # NaN where there is no image
        relative = errors.mean(dim=1) / torch.tensor(list(ALEXNET_ERRORS.values()), dtype=errors.dtype)
        error = errors.nanmean(dim=1).nanmean()
        metrics = {'mCE': relative.mean(), 'error': error, **dict(zip(CORRUPTIONS, relative, strict=True))}
        metrics = {name: 100 * float(value) for name, value in metrics.items() if not value.isnan()}
        if 'mCE' not in metrics:
            print_log(
                'No mCE: it needs all 15 corruptions at all 5 severities.', logger='current', level=logging.WARNING
            )
        return metrics


@METRICS.register_module()
class SubsetAccuracy(BaseMetric):
    """Accuracy of a classifier of ImageNet-1K on data that have some of its classes: the scores of the others are
    dropped, and only classes of the subset can be predicted. In percent, as mmpretrain's `Accuracy` computes it.

    Args:
        subset: 'imagenet_a' or 'imagenet_r', or the numbers of the classes in ImageNet-1K.
        topk: For each k, a prediction is right if the label is among the k best classes.
        collect_device: Where the results of several processes are joined, 'cpu' or 'gpu'.
        prefix: Before the names of the metrics.

    Raises:
        UserError: for another name of a subset.
    """

    default_prefix = 'accuracy'

    def __init__(
        self,
        subset: str | Sequence[int],
        topk: Sequence[int] = (1,),
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.subset = torch.tensor(subset_numbers(subset))
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keeps the scores of each image, -1 outside of the subset, and its label.

        Raises:
            UserError: if the model has too few classes, or a label is not in the subset.
        """
        for sample in data_samples:
            given, label = sample['pred_score'].cpu(), sample['gt_label'].cpu()
            if len(given) <= int(self.subset[-1]):
                raise UserError(
                    f'SubsetAccuracy: the model has {len(given)} classes, and the subset names number '
                    f'{int(self.subset[-1])}: it is for classifiers of ImageNet-1K.'
                )
            if not torch.isin(label, self.subset).all():
                raise UserError(
                    f'SubsetAccuracy: label {label.tolist()} of {sample.get("img_path")} is not in the subset.'
                )
            scores = torch.full_like(given, -1.0)
            scores[self.subset] = given[self.subset]
            self.results.append({'pred_score': scores, 'gt_label': label})

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """``top1`` and the like from scores [classes] and labels [1]."""
        from mmpretrain.evaluation import Accuracy

        scores = torch.stack([result['pred_score'] for result in results])
        labels = torch.cat([result['gt_label'] for result in results])
        values = Accuracy.calculate(scores, labels, topk=self.topk, thrs=(None,))
        return {f'top{k}': float(value[0]) for k, value in zip(self.topk, values, strict=True)}
