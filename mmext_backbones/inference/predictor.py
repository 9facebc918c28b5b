"""A trained network as a function of pictures."""

import itertools
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image

from ..drawing.pixels import to_rgb
from ..utils.devices import find_device
from ..utils.errors import UserError, did_you_mean, first_line
from ..utils.words import plural
from .exported import check_runtime, run_exported
from .images import ImageError, Picture
from .network import build, read_config
from .prediction import Prediction

__all__ = ['Predictor', 'UnpredictedError']

TOP = 5  # classes that a classification tells


class UnpredictedError(ImageError):
    """A picture that can be read, and that the pipeline or the network fails on; what they raised is the cause."""


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
        only: Classes that predictions are limited to, by name or by number; all when None. Pixels of a segmentation
            that are of another class are -1.
        runtime: What computes: ``'torch'``, or ``'onnxruntime'`` or ``'openvino'`` on the CPU, for which the model is
            exported at the first use (docs/export.md) and kept beside the weights.

    Attributes:
        task: ``'detection'``, ``'segmentation'`` or ``'classification'``.
        classes: Names of the classes: as the weights were trained, or else of the config's data.
        name: Of the class of the model.
        runtime: What computes.
        tta: Whether several views are merged; a config that a test with ``--tta`` left in a work dir does it unasked.

    Raises:
        UserError: if the config or the weights cannot be read, do not fit each other, there is no such device or
            class, or the model cannot be exported for the runtime.
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
        only: Sequence[str | int] | None = None,
        runtime: str = 'torch',
    ) -> None:
        self.device = find_device(check_runtime(runtime, device, tta))
        cfg = read_config(config, shapes=shapes, options=options)
        network = build(cfg, os.fspath(weights), device=self.device, tta=tta, shapes=shapes)
        self.scope = cfg.get('default_scope')
        self.task = network.kind
        self.classes = network.classes
        self.palette = network.palette
        self.tta = network.tta
        self.name = type(getattr(network.model, 'module', network.model)).__name__  # inside of what merges views
        self.runtime = runtime
        self.model = network.model
        if runtime != 'torch':
            check_runtime(runtime, None, network.tta)
            self.model = run_exported(network, cfg, os.fspath(weights), runtime)
        self._only = None if only is None else _labels_of(only, network.classes)
        self._read = network.read
        self._pipeline = network.pipeline
        if network.unused:
            warnings.warn(
                f'{weights}: {plural(len(network.unused), "tensor")} without a place in this model, not used '
                f'({", ".join(network.unused[:3])}{", ..." if len(network.unused) > 3 else ""})',
                stacklevel=2,
            )

    def __call__(self, image: Picture) -> Prediction:
        """Predicts one picture.

        Args:
            image: A path; the bytes of a file, or an open file; a picture of PIL; an array [H, W, 3] in RGB, [H, W, 4]
                or [H, W], or a tensor, also with its channels first, of uint8, of floating point from 0 to 1 or from 0
                to 255, or of uint16.

        Raises:
            ImageError: if it cannot be read, or an array has another shape or other values.
            TypeError: for anything else.
        """
        return self.predict([image])[0]

    def predict(self, images: Iterable[Picture], batch_size: int = 1) -> list[Prediction]:
        """Predicts pictures, in their order.

        Args:
            images: Each as for a call.
            batch_size: Pictures that are predicted at once; only neighbours that the pipeline makes equally large
                are, so that padding changes none of them.

        Raises:
            ImageError: As a call does.
            TypeError: if `images` is a single picture.
        """
        return list(self.stream(images, batch_size))

    def stream(self, images: Iterable[Picture], batch_size: int = 1) -> Iterator[Prediction]:
        """As `predict`, one after the other: only a batch is in memory."""
        for prediction in self.stream_readable(images, batch_size):
            if isinstance(prediction, UnpredictedError):
                raise prediction.__cause__
            if isinstance(prediction, ImageError):
                raise prediction
            yield prediction

    def stream_readable(self, images: Iterable[Picture], batch_size: int = 1) -> Iterator[Prediction | ImageError]:
        """As `stream`, with the error in the place of a picture that cannot be read or predicted."""
        if batch_size < 1:
            raise ValueError(f'batch_size={batch_size}: expected 1 or more')
        single = isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim < 4
        if single or isinstance(images, (str, bytes, os.PathLike, Image.Image)):
            raise TypeError('images: expected several, and this is one: predict([image]), or predictor(image)')
        for shapes, group in itertools.groupby(map(self._try_to_prepare, images), key=lambda prepared: prepared[2]):
            if shapes is None:
                yield from (error for error, *_ in group)
            while batch := list(itertools.islice(group, batch_size)):
                yield from self._try_to_predict(batch)

    def _try_to_prepare(self, image: Picture) -> tuple:
        """As `_prepare`; the error and nothing else for a picture that cannot be read."""
        try:
            return self._prepare(image)
        except ImageError as error:
            return error, None, None, 0.0
        except (UserError, TypeError):  # as it would be of any picture, and of no picture at all
            raise
        except Exception as error:
            return _unpredicted(image if isinstance(image, (str, os.PathLike)) else '', error), None, None, 0.0

    def _prepare(self, image: Picture) -> tuple[np.ndarray, dict, tuple, float]:
        """The picture in RGB, what the pipeline makes of it, the shapes of that, and the time it took."""
        read = self._read(image)
        pixels = to_rgb(read['img'])
        start = time.perf_counter()
        with DefaultScope.overwrite_default_scope(self.scope):
            packed = self._pipeline(read)
        if packed is None:
            raise ImageError(f'image {read.get("img_path")!r}: the test pipeline of the config gives nothing for it.')
        inputs = packed['inputs'] if isinstance(packed['inputs'], list) else [packed['inputs']]
        shapes = tuple(tuple(view.shape) for view in inputs)
        return pixels, packed, shapes, time.perf_counter() - start

    def _try_to_predict(self, batch: Sequence[tuple]) -> list[Prediction | ImageError]:
        """As `_predict`; where it fails on several pictures, each by itself, with the error in its place."""
        try:
            return self._predict(batch)
        except UserError:
            raise
        except Exception as error:
            if len(batch) == 1:
                return [_unpredicted(getattr(batch[0][1].get('data_samples'), 'img_path', ''), error)]
        return [prediction for one in batch for prediction in self._try_to_predict([one])]

    @torch.no_grad()
    def _predict(self, batch: Sequence[tuple[np.ndarray, dict, tuple, float]]) -> list[Prediction]:
        start = time.perf_counter()
        with DefaultScope.overwrite_default_scope(self.scope):
            samples = self.model.test_step(pseudo_collate([packed for _, packed, _, _ in batch]))
        parts = [_PARTS[self.task](sample, self._only) for sample in samples]  # on the CPU, which waits for the GPU
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


def _unpredicted(path: str | os.PathLike, error: Exception) -> UnpredictedError:
    line = first_line(error)[:300]
    name = f'image {os.fspath(path)!r}' if path else 'image'
    told = UnpredictedError(f'{name} cannot be predicted: {type(error).__name__}: {line}')
    told.__cause__ = error
    return told


# --------------------------------------------------------------------------------------------------------------------
# Classes by name


def _labels_of(only: Sequence[str | int], classes: Sequence[str]) -> list[int]:
    """The numbers of classes that are named, in any case of their letters, or numbered."""
    labels = []
    for name in [only] if isinstance(only, str) else only:
        found = [i for i, known in enumerate(classes) if known == name]
        found = found or [i for i, known in enumerate(classes) if known.lower() == str(name).lower()]
        number = int(name) if str(name).isdecimal() else len(classes)
        if not found and number >= len(classes):
            raise UserError(
                f'class {name!r}: the model has none of this name, and its numbers are 0 to {len(classes) - 1}.'
                f'{did_you_mean(str(name), classes)}'
            )
        labels += found or [number]
    if not labels:
        raise UserError('no class is named that predictions are to be limited to.')
    return labels


# --------------------------------------------------------------------------------------------------------------------
# From the samples of the libraries to arrays; of the classes that are asked for


def _detection(sample: Any, only: list[int] | None) -> dict[str, np.ndarray]:
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
    if only is not None:
        kept = np.isin(arrays['labels'], only)
        arrays = {key: value[kept] for key, value in arrays.items()}
    return arrays


def _around(masks: np.ndarray) -> np.ndarray:
    """The box around each mask [N, H, W]; zeros for an empty one."""
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _segmentation(sample: Any, only: list[int] | None) -> dict[str, np.ndarray]:
    labels = _of(sample, 'pred_sem_seg').data[0].cpu().numpy().astype(np.int32)
    return {'segmentation': labels if only is None else np.where(np.isin(labels, only), labels, -1)}


def _classification(sample: Any, only: list[int] | None) -> dict[str, np.ndarray]:
    scores, labels = _of(sample, 'pred_score').float().cpu().sort(descending=True, stable=True)
    if only is not None:
        kept = torch.isin(labels, torch.tensor(only))
        scores, labels = scores[kept], labels[kept]
    return {'scores': scores[:TOP].numpy(), 'labels': labels[:TOP].numpy()}


def _of(sample: Any, key: str) -> Any:
    if key not in sample:
        raise UserError(
            f'this model predicts {", ".join(sample.keys()) or "nothing"}: expected {key}. Boxes, masks, semantic '
            'segments and classes of pictures can be shown.'
        )
    return sample.get(key)


_PARTS = {'detection': _detection, 'segmentation': _segmentation, 'classification': _classification}
