"""A trained network as a function of pictures."""

import itertools
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope

from ..utils.errors import UserError
from .images import to_rgb
from .network import build, find_device, read_config
from .prediction import Prediction

__all__ = ['Predictor']

TOP = 5  # classes that a classification tells

Image = str | os.PathLike | np.ndarray


class Predictor:
    """Predicts pictures with the model and the test pipeline of a config: what mmdet, mmseg and mmpretrain would.

    Args:
        config: A config file (one of a work dir, too), a name such as
            ``'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'``, or a config.
        weights: A checkpoint, or an address that mmengine can read (``https://``, ``timm://``, ...).
        device: As torch calls it; when None, the GPU if there is one, else the CPU.
        tta: Test-time augmentation: predict several views of each picture, those of the config's ``tta_pipeline``, and
            merge them.
        shapes: The weights come from a run with ``--shapes``.
        options: Dotted config keys with values, applied after everything else.

    Attributes:
        task: ``'detection'``, ``'segmentation'`` or ``'classification'``.
        classes: Names of the classes: as the weights were trained, or else of the config's data.
        tta: Whether several views are merged; a config that a test with ``--tta`` left in a work dir does it unasked.

    Raises:
        UserError: if the config or the weights cannot be read, do not fit each other, or there is no such device.
    """

    def __init__(
        self,
        config: str | os.PathLike | Config,
        weights: str | os.PathLike,
        device: str | torch.device | None = None,
        tta: bool = False,
        *,
        shapes: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.device = find_device(device)
        cfg = read_config(config, shapes=shapes, options=options)
        network = build(cfg, os.fspath(weights), device=self.device, tta=tta, shapes=shapes)
        self.scope = cfg.get('default_scope')
        self.task = network.kind
        self.classes = network.classes
        self.palette = network.palette
        self.tta = network.tta
        self.model = network.model
        self._read = network.read
        self._pipeline = network.pipeline
        if network.unused:
            warnings.warn(
                f'{weights}: {len(network.unused)} tensors have no place in this model and are not used '
                f'({", ".join(network.unused[:3])}{", ..." if len(network.unused) > 3 else ""})',
                stacklevel=2,
            )

    def __call__(self, image: Image) -> Prediction:
        """Predicts one picture.

        Args:
            image: A file, or an array uint8 [H, W, 3] in RGB.

        Raises:
            ImageError: if a file cannot be read.
            ValueError: for an array of another shape or type.
        """
        return self.predict([image])[0]

    def predict(self, images: Sequence[Image], batch_size: int = 1) -> list[Prediction]:
        """Predicts pictures, in their order.

        Args:
            images: Each as for a call.
            batch_size: Pictures that are predicted at once; only neighbours that the pipeline makes equally large
                are, so that padding changes none of them.
        """
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size}: expected 1 or more')
        return list(self.stream(images, batch_size))

    def stream(self, images: Sequence[Image], batch_size: int = 1) -> Iterator[Prediction]:
        """As `predict`, one after the other: only a batch is in memory."""
        for _, group in itertools.groupby(map(self._prepare, images), key=lambda prepared: prepared[2]):
            while batch := list(itertools.islice(group, batch_size)):
                yield from self._predict(batch)

    def _prepare(self, image: Image) -> tuple[np.ndarray, dict, tuple, float]:
        """The picture in RGB, what the pipeline makes of it, the shapes of that, and the time it took."""
        read = self._read(image)
        pixels = to_rgb(read['img'])
        start = time.perf_counter()
        with DefaultScope.overwrite_default_scope(self.scope):
            packed = self._pipeline(read)
        if packed is None:
            raise UserError('the test pipeline of the config gives nothing for this picture.')
        inputs = packed['inputs'] if isinstance(packed['inputs'], list) else [packed['inputs']]
        shapes = tuple(tuple(view.shape) for view in inputs)
        return pixels, packed, shapes, time.perf_counter() - start

    @torch.no_grad()
    def _predict(self, batch: Sequence[tuple[np.ndarray, dict, tuple, float]]) -> list[Prediction]:
        start = time.perf_counter()
        with DefaultScope.overwrite_default_scope(self.scope):
            samples = self.model.test_step(pseudo_collate([packed for _, packed, _, _ in batch]))
        parts = [_PARTS[self.task](sample) for sample in samples]  # on the CPU, which waits for the GPU
        seconds = (time.perf_counter() - start) / len(batch)
        return [
            Prediction(
                kind=self.task,
                size=pixels.shape[:2],
                classes=self.classes,
                seconds=seconds + before,
                image=pixels,
                palette=self.palette,
                **part,
            )
            for (pixels, _, _, before), part in zip(batch, parts, strict=True)
        ]


# --------------------------------------------------------------------------------------------------------------------
# From the samples of the libraries to arrays


def _detection(sample: Any) -> dict[str, np.ndarray]:
    instances = _of(sample, 'pred_instances')
    found = {'scores': instances.scores, 'labels': instances.labels}
    boxes = getattr(instances, 'bboxes', None)
    found['boxes'] = getattr(boxes, 'tensor', boxes)
    arrays = {key: value.cpu().numpy() for key, value in found.items() if value is not None}
    if 'masks' in instances:
        masks = instances.masks
        arrays['masks'] = np.asarray(masks.cpu() if isinstance(masks, torch.Tensor) else masks, dtype=bool)
        if not arrays.get('boxes', np.zeros(0)).any():  # as of a network that predicts masks alone
            arrays['boxes'] = _around(arrays['masks'])
    arrays['boxes'] = arrays['boxes'].astype(np.float32, copy=False)
    return arrays


def _around(masks: np.ndarray) -> np.ndarray:
    """The box around each mask [N, H, W]; zeros for an empty one."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _segmentation(sample: Any) -> dict[str, np.ndarray]:
    return {'segmentation': _of(sample, 'pred_sem_seg').data[0].cpu().numpy().astype(np.int32)}


def _classification(sample: Any) -> dict[str, np.ndarray]:
    scores, labels = _of(sample, 'pred_score').float().sort(descending=True, stable=True)
    return {'scores': scores[:TOP].cpu().numpy(), 'labels': labels[:TOP].cpu().numpy()}


def _of(sample: Any, key: str) -> Any:
    if key not in sample:
        raise UserError(
            f'this model predicts {", ".join(sample.keys()) or "nothing"}: expected {key}. Boxes, masks, semantic '
            'segments and classes of pictures can be shown.'
        )
    return sample.get(key)


_PARTS = {'detection': _detection, 'segmentation': _segmentation, 'classification': _classification}
