"""ImageNet-C: the validation images of ImageNet-1K under 15 corruptions, each at 5 severities.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import ConcatDataset

from ..registry import DATASETS
from ..utils.errors import UserError

__all__ = ['ALEXNET_ERRORS', 'CORRUPTIONS', 'SEVERITIES', 'ImageNetC', 'corruption_of']

# Folder of each corruption -> AlexNet's error on it, the mean over the severities, from 0 to 1.
ALEXNET_ERRORS = {
    'gaussian_noise': 0.886428,
    'shot_noise': 0.894468,
    'impulse_noise': 0.922640,
    'defocus_blur': 0.819880,
    'glass_blur': 0.826268,
    'motion_blur': 0.785948,
    'zoom_blur': 0.798360,
    'snow': 0.866816,
    'frost': 0.826572,
    'fog': 0.819324,
    'brightness': 0.564592,
    'contrast': 0.853204,
    'elastic_transform': 0.646056,
    'pixelate': 0.717840,
    'jpeg_compression': 0.606500,
}
CORRUPTIONS = tuple(ALEXNET_ERRORS)
SEVERITIES = (1, 2, 3, 4, 5)


def corruption_of(img_path: str) -> tuple[str, int] | None:
    """Corruption and severity of an image of the release, ``.../fog/3/n01440764/x.JPEG``; None for any other path."""
    *_, corruption, severity, _, _ = ('', '', '', '', *Path(img_path).parts)
    known = corruption in ALEXNET_ERRORS and severity in map(str, SEVERITIES)
    return (corruption, int(severity)) if known else None


@DATASETS.register_module()
class ImageNetC(ConcatDataset):
    """The parts of ImageNet-C as one data set, each an `ImageNet` of mmpretrain's.

    The folders are those of the release, unpacked into one: ``data_root/fog/3/n01440764/ILSVRC2012_val_00000293.JPEG``.

    Args:
        data_root: The folder that holds the corruptions.
        pipeline: Steps of mmpretrain.
        corruptions: Which of the 15, by the names of their folders.
        severities: Which of 1 to 5.
        **kwargs: Of mmpretrain's `ImageNet`, such as `metainfo` with other classes than ImageNet's thousand.

    Raises:
        UserError: if there is no such corruption or severity, or the folder of one is missing.
    """

    def __init__(
        self,
        data_root: str,
        pipeline: Sequence[Any],
        corruptions: Sequence[str] = CORRUPTIONS,
        severities: Sequence[int] = SEVERITIES,
        **kwargs: Any,
    ) -> None:
        for name, given, known in (('corruptions', corruptions, CORRUPTIONS), ('severities', severities, SEVERITIES)):
            if not given or not set(given) <= set(known):
                raise UserError(f'ImageNetC: {name}={list(given)}: expected some of {", ".join(map(str, known))}.')
        parts = [f'{corruption}/{severity}' for corruption in corruptions for severity in severities]
        missing = [part for part in parts if not os.path.isdir(os.path.join(data_root, part))]
        if missing:
            raise UserError(
                f'ImageNetC: {data_root} lacks {len(missing)} of {len(parts)} folders, the first of them {missing[0]}: '
                'unpack the archives of the release there, or name the corruptions and severities that you have.'
            )
        part = {'type': 'mmpretrain.ImageNet', 'data_root': data_root, 'pipeline': pipeline, **kwargs}
        super().__init__([{**part, 'data_prefix': prefix} for prefix in parts])
