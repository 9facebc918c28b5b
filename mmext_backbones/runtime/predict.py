"""Runs an exported detector, segmentor or classifier on pictures: one file, which needs no training library.

    python predict.py model.onnx photo.jpg photos/ --out predicted
    python predict.py model.onnx photos/ --json results.json --runtime openvino --batch-size 4

It needs numpy, opencv-python (or opencv-python-headless), and onnxruntime or openvino. Pictures are read and resized,
and boxes, masks and maps brought back to their size, as mmdet, mmsegmentation and mmpretrain do it; how follows from
what the file says of itself. The exit code is 0, 1 where a picture could not be predicted (the others are), 2 after a
mistake. From Python: ``Model('model.onnx').predict('photo.jpg')``.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

try:
    import cv2
    import numpy as np
except ImportError as error:
    if __name__ != '__main__':
        raise
    print(f'Error: {error}. predict.py needs two packages: pip install numpy opencv-python-headless', file=sys.stderr)
    sys.exit(2)

KEY = 'mmext_backbones.whole'  # of the metadata, whose value is one JSON object
VERSION = 1  # of that object
SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp', '.jp2')
TOP = 5  # classes that are told of a classification
CPU = 'CPUExecutionProvider'
# COCO numbers its 80 classes from 1 to 90; these numbers are of no class
COCO_GAPS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO_ENDS = (80, 'person', 'toothbrush')


class PredictError(Exception):
    """A mistake of the caller."""


class PictureError(Exception):
    """A picture that cannot be predicted; others may well be."""


# --------------------------------------------------------------------------------------------------------------------
# What a file says of itself


def read_whole(path: str | os.PathLike) -> dict[str, Any]:
    """What a file of a whole model says of itself.

    Raises:
        PredictError: if it is not there, no ONNX file, or one of something else.
    """
    name = repr(os.fspath(path))
    try:
        with open(path, 'rb') as file:
            entries = [dict(_fields(io.BytesIO(entry), {1, 2})) for _, entry in _fields(file, {14})]
        metadata = {entry[1].decode(): entry.get(2, b'').decode() for entry in entries}
    except FileNotFoundError:
        raise PredictError(f'{name}: there is no such file.') from None
    except OSError as error:
        raise PredictError(f'{name} cannot be read: {error.strerror}.') from error
    except (ValueError, LookupError):
        raise PredictError(f'{name} is no ONNX file, or is damaged.') from None
    try:
        whole = json.loads(metadata[KEY])
        version = int(whole['version'])
    except KeyError:
        raise PredictError(f'{name} is not a whole model, or one that something else exported: no {KEY}.') from None
    except (ValueError, TypeError):
        raise PredictError(f'{name}: its metadata {KEY} cannot be read.') from None
    if version > VERSION:
        raise PredictError(f'{name} is newer than this program: run the predict.py that was written beside it.')
    return whole


def _fields(stream: BinaryIO, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The texts and messages of some numbers in a message of protobuf; what else is in it is passed over."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    while stream.tell() < end:
        number, kind = divmod(_varint(stream), 8)
        if kind == 0:
            _varint(stream)
        elif kind in (1, 5):
            stream.seek(8 if kind == 1 else 4, os.SEEK_CUR)
        elif kind != 2:
            raise ValueError(f'no protobuf: a field of kind {kind}')
        elif number not in wanted:
            stream.seek(_varint(stream), os.SEEK_CUR)
        else:
            yield number, stream.read(_varint(stream))
        if stream.tell() > end:
            raise ValueError('no protobuf: a field is longer than what is there')


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = stream.read(1)
        value |= (byte[0] & 127) << shift  # IndexError where it has no end
        if byte[0] < 128:
            return value
    raise ValueError('no protobuf: a number without an end')


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """A picture, uint8 [H, W, 3] in BGR, turned as its camera notes.

    Raises:
        PictureError: if it cannot be read.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f'cannot be opened: {error.strerror}') from error
    if not content:
        raise PictureError('is an empty file')
    for start, end in ((b'\xff\xd8\xff', b'\xff\xd9'), (b'\x89PNG\r\n', b'IEND')):
        if content.startswith(start) and end not in content[-4096:]:
            raise PictureError('is cut short')
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise PictureError(f'cannot be read: {error.err}') from error
    if image is None:
        raise PictureError('cannot be read: it is damaged or no picture')
    return image


def resize_picture(image: np.ndarray, rule: dict[str, Any] | None) -> np.ndarray:
    """What the network sees of a picture.

    Args:
        image: uint8 [H, W, 3].
        rule: ``scale`` (an edge, or width and height) and ``keep_ratio`` as in mmcv's ``Resize``, or ``short_edge`` and
            ``crop`` as in mmpretrain's ``ResizeEdge`` and mmcv's ``CenterCrop``, either of which may be missing; with
            ``interpolation`` and ``backend`` as there. None to leave it as it is.
    """
    rule = rule or {}
    height, width = image.shape[:2]
    size = (width, height)
    if rule.get('scale'):
        scale = rule['scale']
        size = (scale, scale) if isinstance(scale, int) else tuple(scale)
        if rule.get('keep_ratio'):
            factor = min(max(size) / max(height, width), min(size) / min(height, width))
            size = (int(width * factor + 0.5), int(height * factor + 0.5))
    elif rule.get('short_edge'):
        edge = rule['short_edge']
        size = (edge, int(edge * height / width)) if width < height else (int(edge * width / height), edge)
    if min(size) < 1:
        raise PictureError(f'is too narrow to be resized: {width} x {height} would become {size[0]} x {size[1]}')
    if size != (width, height):
        image = _resized(image, size, rule.get('interpolation', 'bilinear'), rule.get('backend', 'cv2'))
    if rule.get('crop'):
        crop = rule['crop']
        across, down = (crop, crop) if isinstance(crop, int) else crop
        top, left = (max(0, round((edge - c) / 2)) for edge, c in zip(image.shape[:2], (down, across), strict=True))
        image = image[top : top + down, left : left + across]
    return image


def _resized(image: np.ndarray, size: tuple[int, int], interpolation: str, backend: str) -> np.ndarray:
    if backend == 'pillow' and interpolation in FILTERS:
        for edge in size:  # the width first, as Pillow: it rounds to 8 bits in between
            image = _pillow_pass(image, edge, *FILTERS[interpolation]).swapaxes(0, 1)
        return image
    codes = {'nearest': cv2.INTER_NEAREST, 'bilinear': cv2.INTER_LINEAR, 'bicubic': cv2.INTER_CUBIC,
             'area': cv2.INTER_AREA, 'lanczos': cv2.INTER_LANCZOS4}  # fmt: skip
    if backend != 'cv2' or interpolation not in codes:
        raise PredictError(f'resizing by {interpolation!r} of {backend!r} is not known to this program.')
    return cv2.resize(image, size, interpolation=codes[interpolation])


def _bicubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0))


# of Pillow: how far a filter reaches, in pixels of the smaller picture, and the filter
FILTERS = {'bilinear': (1, lambda x: np.maximum(0, 1 - np.abs(x))), 'bicubic': (2, _bicubic)}


def _pillow_pass(image: np.ndarray, edge: int, reach: int, weigh: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Width brought to `edge` with the integers of 22 bits that Pillow computes with: the same pixels without it."""
    before = image.shape[1]
    scale = before / edge
    wide = max(scale, 1.0)
    centre = (np.arange(edge) + 0.5) * scale
    first = np.maximum((centre - reach * wide + 0.5).astype(int), 0)
    last = np.minimum((centre + reach * wide + 0.5).astype(int), before)
    taps = first[:, None] + np.arange((last - first).max())  # [edge, taps]
    weights = weigh((taps - centre[:, None] + 0.5) * (1 / wide)) * (taps < last[:, None])
    weights /= weights.sum(axis=1, keepdims=True)
    factors = np.trunc(weights * (1 << 22) + np.copysign(0.5, weights)).astype(np.int32)
    total = np.full((image.shape[0], edge, image.shape[2]), 1 << 21, np.int32)
    for tap, factor in zip(np.minimum(taps, before - 1).T, factors.T, strict=True):
        total += image[:, tap].astype(np.int32) * factor[:, None]
    return (total >> 22).clip(0, 255).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------------------
# From what the network gives to the size of the picture


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Masks of boxes as masks of the picture, as mmdet pastes them.

    Args:
        masks: Probabilities, float32 [N, h, w].
        boxes: float32 [N, 4] as (x1, y1, x2, y2) in pixels of the picture.
        size: (H, W) of the picture.
        threshold: From which on a pixel belongs to the mask.

    Returns:
        bool [N, H, W].
    """
    height, width = size
    pasted = np.zeros((len(masks), height, width), bool)
    for whole, mask, (x1, y1, x2, y2) in zip(pasted, masks, boxes, strict=True):
        left, right = max(math.floor(x1) - 1, 0), min(math.ceil(x2) + 1, width)
        top, low = max(math.floor(y1) - 1, 0), min(math.ceil(y2) + 1, height)
        cells = np.pad(mask, 2)
        with np.errstate(divide='ignore', invalid='ignore'):  # of a box without an area
            y, down = _between(top, low, y1, y2, mask.shape[0])
            x, across = _between(left, right, x1, x2, mask.shape[1])
            down, up, back = down[:, None], 1 - down[:, None], 1 - across
            values = cells[np.ix_(y, x)] * (back * up) + cells[np.ix_(y, x + 1)] * (across * up)
            values = values + cells[np.ix_(y + 1, x)] * (back * down) + cells[np.ix_(y + 1, x + 1)] * (across * down)
            whole[top:low, left:right] = values >= threshold
    return pasted


def _between(start: int, stop: int, low: np.float32, high: np.float32, edge: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels from start to stop lie among `edge` cells between low and high.

    Returns:
        The cell before each, where two empty ones stand before the first, and how far behind that it is, from 0 to 1.
    """
    places = (np.arange(start, stop, dtype=np.float32) + np.float32(0.5) - low) / (high - low) * 2 - 1
    places[np.isinf(places)] = 0
    places = ((places + 1).astype(np.float64) * (edge / 2) - 0.5).astype(np.float32)  # rounded once, as in PyTorch
    first = np.floor(places)
    return np.nan_to_num(first).clip(-2, edge).astype(int) + 2, places - first


def label_pixels(
    logits: np.ndarray,
    padded: tuple[int, int],
    seen: tuple[int, int],
    size: tuple[int, int],
    *,
    align_corners: bool = False,
    threshold: float = 0.3,
) -> np.ndarray:
    """The class of each pixel of a picture, as mmsegmentation has it; one class at a time, to spare memory.

    Args:
        logits: Of the padded picture, float32 [C, h, w].
        padded: (H, W) of the picture as the network saw it, padded.
        seen: (H, W) without the padding.
        size: (H, W) of the picture itself.
        align_corners: As in the decode head.
        threshold: Of the probability, for a single class.

    Returns:
        uint8 [H, W], int32 above 256 classes.
    """
    labels = np.zeros(size, np.uint8 if len(logits) <= 256 else np.int32)
    best = None
    for label, plane in enumerate(logits):
        plane = _stretched(plane, padded, align_corners)[: seen[0], : seen[1]]
        plane = _stretched(plane, size, align_corners)
        if best is None:
            best = plane.copy()
        else:
            better = plane > best
            labels[better] = label
            np.copyto(best, plane, where=better)
    if len(logits) == 1:
        with np.errstate(over='ignore'):
            return (1 / (1 + np.exp(-best)) > threshold).astype(np.uint8)
    return labels


def _stretched(plane: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """[h, w] brought to a size by bilinear interpolation, as PyTorch does."""
    if not align_corners:
        return cv2.resize(np.ascontiguousarray(plane), (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    for edge in size:
        last = len(plane) - 1
        places = np.arange(edge, dtype=np.float32) * np.float32(last / max(edge - 1, 1))
        low = places.astype(int)
        share = (places - low)[:, None]
        plane = (plane[low] * (1 - share) + plane[np.minimum(low + 1, last)] * share).T
    return plane


# --------------------------------------------------------------------------------------------------------------------
# The model


class Model:
    """A whole model in an ONNX file.

    Args:
        path: The file.
        runtime: What runs it, ``'onnxruntime'`` or ``'openvino'``.
        providers: Of onnxruntime, the first that can; the CPU when None.
        device: Of openvino, ``'CPU'``, ``'GPU'``, ...
        threads: That compute; as many as the runtime likes when None.
        precision: Of openvino, ``'f32'`` or ``'bf16'``, in which boxes move by pixels.

    Attributes:
        meta: What the file says of itself.
        task: ``'detection'``, ``'instance segmentation'``, ``'semantic segmentation'`` or ``'classification'``.
        classes: Their names.
        fixed: (H, W) of the only input the file takes; None if it takes any.

    Raises:
        PredictError: if the file is no whole model, or cannot be run so.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        runtime: str = 'onnxruntime',
        *,
        providers: Sequence[str] | None = None,
        device: str = 'CPU',
        threads: int | None = None,
        precision: str = 'f32',
    ) -> None:
        if runtime not in ('onnxruntime', 'openvino'):
            raise PredictError(f'runtime {runtime!r}: expected onnxruntime or openvino.')
        self.meta = read_whole(path)
        self.task: str = self.meta['task']
        self.classes: list[str] = self.meta['classes']
        try:
            if runtime == 'openvino':
                shape, self._run = _openvino(os.fspath(path), device, threads, precision)
            else:
                shape, self._run = _onnxruntime(os.fspath(path), list(providers or [CPU]), threads)
        except ImportError as error:
            raise PredictError(f'{error}. It takes another package to run the file: pip install {runtime}') from error
        except PredictError:
            raise
        except Exception as error:  # runtimes raise anything
            raise PredictError(f'{os.fspath(path)!r} cannot be loaded by {runtime}: {_first_line(error)}') from error
        self.fixed = tuple(shape[2:]) if all(isinstance(edge, int) for edge in shape[2:]) else None

    def predict(self, image: str | os.PathLike | np.ndarray, least: float = 0.0) -> dict[str, Any]:
        """Predicts one picture.

        Args:
            image: A path, or pixels as OpenCV reads them, uint8 [H, W, 3] in BGR.
            least: Detections with a lower score are left out.

        Returns:
            ``size``, the (H, W) of the picture, and, by task: ``boxes`` float32 [N, 4] as (x1, y1, x2, y2) in pixels,
            ``scores`` float32 [N], ``labels`` int64 [N] and, where the model has masks, ``masks`` bool [N, H, W];
            ``segmentation``, the class of each pixel, uint8 [H, W]; or ``scores`` float32 [classes].

        Raises:
            PictureError: if it cannot be read, or is no picture the file can take.
        """
        name = '' if isinstance(image, np.ndarray) else f'{os.fspath(image)!r} '
        try:
            image = read_picture(image) if name else image
            return self.predict_resized([resize_picture(image, self.meta.get('resize'))], [image.shape[:2]], least)[0]
        except PictureError as error:
            raise PictureError(f'picture {name}{error}') from error

    def predict_resized(
        self,
        pictures: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        least: float = 0.0,
        scales: Sequence[tuple[float, float]] | None = None,
    ) -> list[dict[str, Any]]:
        """Predicts pictures that are resized already, and all of one size.

        Args:
            pictures: [h, w, 3] in BGR from 0 to 255.
            sizes: (H, W) of each before it was resized.
            least: As for `predict`.
            scales: By which factors width and height of each were multiplied; follows from the sizes when None.

        Raises:
            PictureError: As `predict`.
        """
        seen = pictures[0].shape[:2]
        x = self._fed(np.stack(pictures).astype(np.float32))
        try:
            outputs = self._run(x)
        except Exception as error:  # runtimes raise anything
            told = 'x'.join(map(str, x.shape))
            raise PictureError(f'cannot be predicted: an input of {told}: {_first_line(error)}') from error
        scales = scales or [(seen[1] / width, seen[0] / height) for height, width in sizes]
        parts = [{name: output[i] for name, output in outputs.items()} for i in range(len(pictures))]
        return [self._result(*of, seen=seen, least=least) for of in zip(parts, sizes, scales, strict=True)]

    def _fed(self, x: np.ndarray) -> np.ndarray:
        """[B, H, W, 3] in BGR as what the file takes: float32 [B, 3, H', W']."""
        given = self.meta['input']
        mean, std = (np.float32(given.get(key) or default) for key, default in (('mean', [0] * 3), ('std', [1] * 3)))
        if given.get('raw'):
            x = ((x[..., ::-1] if given.get('to_rgb') else x) - mean) / std
        if self.fixed and self.fixed != x.shape[1:3]:
            if x.shape[1] > self.fixed[0] or x.shape[2] > self.fixed[1]:
                edges = [f'{height} x {width}' for height, width in (self.fixed, x.shape[1:3])]
                raise PictureError(f'cannot be predicted: the file is for {edges[0]} alone, and this one is {edges[1]}')
            colour = 0 if given.get('raw') else mean[::-1] if given.get('to_rgb') else mean
            padded = np.broadcast_to(np.float32(colour), (len(x), *self.fixed, 3)).copy()
            padded[:, : x.shape[1], : x.shape[2]] = x
            x = padded
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2), dtype=np.float32)

    def _result(
        self,
        outputs: dict[str, np.ndarray],
        size: tuple[int, int],
        scale: tuple[float, float],
        *,
        seen: tuple[int, int],
        least: float,
    ) -> dict[str, Any]:
        height, width = size
        found: dict[str, Any] = {'size': (int(height), int(width))}
        if self.task == 'classification':
            return {**found, 'scores': outputs['scores']}
        if self.task == 'semantic segmentation':
            divisor = self.meta['input'].get('size_divisor') or 1
            padded = self.fixed or tuple(-(-edge // divisor) * divisor for edge in seen)
            rules = {'align_corners': bool(self.meta.get('align_corners'))}
            if self.meta.get('threshold') is not None:
                rules['threshold'] = self.meta['threshold']
            return {**found, 'segmentation': label_pixels(outputs['logits'], padded, seen, found['size'], **rules)}
        kept = (outputs['labels'] >= 0) & (outputs['dets'][:, 4] >= least)
        dets, labels = outputs['dets'][kept], outputs['labels'][kept]
        boxes = dets[:, :4] / np.float32([*scale, *scale])
        if 'masks' in outputs:
            found['masks'] = paste_masks(outputs['masks'][kept], boxes, found['size'], self.meta['mask_thr'])
        boxes = boxes.clip(0, np.float32([width, height, width, height]))
        return {**found, 'boxes': boxes, 'scores': dets[:, 4], 'labels': labels.astype(np.int64)}


def _onnxruntime(path: str, providers: list[str], threads: int | None) -> tuple[Sequence, Callable]:
    """The shape of the input, and the file as a function: input -> outputs by name."""
    import onnxruntime

    known = onnxruntime.get_available_providers()
    for name in providers:
        if name not in known:
            raise PredictError(f'--providers {name}: this onnxruntime has {", ".join(known)}.')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    (given,), names = session.get_inputs(), [output.name for output in session.get_outputs()]
    return given.shape, lambda x: dict(zip(names, session.run(names, {given.name: x}), strict=True))


def _openvino(path: str, device: str, threads: int | None, precision: str) -> tuple[Sequence, Callable]:
    """As `_onnxruntime`. Without the hint OpenVINO computes boxes in bfloat16 where the processor has it."""
    import openvino

    settings: dict[str, Any] = {'INFERENCE_PRECISION_HINT': precision}
    if threads:
        settings['INFERENCE_NUM_THREADS'] = threads
    compiled = openvino.Core().compile_model(path, device, settings)
    shape = [edge.get_length() if edge.is_static else None for edge in compiled.inputs[0].partial_shape]

    def run(x: np.ndarray) -> dict[str, np.ndarray]:
        results = compiled([x])
        return {output.any_name: np.array(results[output]) for output in compiled.outputs}

    return shape, run


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# --------------------------------------------------------------------------------------------------------------------
# Results as text and JSON


def name_of(classes: Sequence[str], label: int) -> str:
    """The name of a class."""
    return classes[label] if 0 <= label < len(classes) else f'class {label}'


def summary(result: dict[str, Any], classes: Sequence[str], threshold: float) -> list[tuple[str, str, int]]:
    """What was found, most first: the name, a number and the label of each class."""
    if 'segmentation' in result:
        labels, counts = np.unique(result['segmentation'], return_counts=True)
        pairs = sorted(zip((counts / counts.sum()).tolist(), labels.tolist(), strict=True), key=lambda pair: -pair[0])
        return [(name_of(classes, label), f'{share:.1%}', label) for share, label in pairs]
    if 'boxes' in result:
        counted = Counter(result['labels'][result['scores'] >= threshold].tolist())
        return [(name_of(classes, label), str(count), label) for label, count in counted.most_common()]
    best = np.argsort(-result['scores'], kind='stable')[:TOP].tolist()
    return [(name_of(classes, label), f'{result["scores"][label]:.2f}', label) for label in best]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], as COCO's compressed run lengths: ``size`` and ``counts``, a text, as pycocotools has it."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff([0, *changes.tolist(), flat.size]).tolist()
    runs = [0, *runs] if flat.size and flat[0] else runs  # the first run is of zeros
    letters = []
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + 32 * more))
            if not more:
                break
    return {'size': [int(edge) for edge in mask.shape], 'counts': ''.join(letters)}


def category_id(classes: Sequence[str], label: int) -> int:
    """COCO's number of a class: 1, 2, ... in their order; with COCO's own gaps for COCO's own 80 classes."""
    gaps = COCO_GAPS if (len(classes), *classes[:1], *classes[-1:]) == COCO_ENDS else ()
    numbers = [number for number in range(1, label + len(gaps) + 2) if number not in gaps]
    return numbers[label]


def entries_of(result: dict[str, Any], classes: Sequence[str], number: int, name: str) -> list[dict[str, Any]]:
    """A result for JSON: of a detector COCO's result format, else one entry a picture."""
    if 'boxes' not in result:
        key = 'shares' if 'segmentation' in result else 'top'
        told = summary(result, classes, 0)
        if key == 'shares':
            values: Any = {cls: (result['segmentation'] == label).mean().item() for cls, _, label in told}
        else:
            values = [{'label': k, 'class': cls, 'score': float(result['scores'][k])} for cls, _, k in told]
        return [{'image_id': number, 'file_name': name, key: values}]
    entries = []
    for i, (x1, y1, x2, y2) in enumerate(result['boxes'].astype(float).tolist()):
        entry = {'image_id': number, 'category_id': category_id(classes, int(result['labels'][i]))}
        entry |= {'bbox': [x1, y1, x2 - x1, y2 - y1], 'score': float(result['scores'][i])}
        if 'masks' in result:
            entry['segmentation'] = encode_mask(result['masks'][i])
        entries.append(entry)
    return entries


# --------------------------------------------------------------------------------------------------------------------
# Pictures of results


def class_colours(meta: dict[str, Any]) -> list[tuple[int, int, int]]:
    """A colour for every class, in BGR: the data set's own, or hues as far apart as they can be."""
    palette = meta.get('palette') or []
    if len(palette) < (count := len(meta['classes']) or COCO_ENDS[0]):  # a file may not know its classes
        golden = (5**0.5 - 1) / 2
        hues = [colorsys.hsv_to_rgb(i * golden % 1, 0.75, (0.95, 0.7)[i // 12 % 2]) for i in range(count)]
        palette = [[round(255 * value) for value in colour] for colour in hues]
    return [tuple(int(value) for value in colour[::-1]) for colour in palette]


def draw(image: np.ndarray, result: dict[str, Any], meta: dict[str, Any], threshold: float = 0.3) -> np.ndarray:
    """The picture with what was found, uint8 [H', W', 3] in BGR; small ones are enlarged, so that text can be read.

    Args:
        image: uint8 [H, W, 3] in BGR.
        result: Of `Model.predict`.
        meta: Of the model.
        threshold: Detections below this score are left out.
    """
    factor = max(1, -(-480 // max(image.shape[:2])))
    canvas = _enlarged(image, factor).copy()
    colours, classes = class_colours(meta), meta['classes']
    if 'boxes' in result:
        order = [i for i in np.argsort(result['scores'], kind='stable') if result['scores'][i] >= threshold]
        tints = [colours[result['labels'][i] % len(colours)] for i in order]
        for i, colour in zip(order, tints, strict=True):
            if 'masks' in result:
                _tint(canvas, _enlarged(result['masks'][i], factor), colour)
        for i, colour in zip(order, tints, strict=True):
            x1, y1, x2, y2 = (round(float(value) * factor) for value in result['boxes'][i])
            cv2.rectangle(canvas, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), colour, _line(canvas))
            _write(canvas, f'{name_of(classes, result["labels"][i])} {result["scores"][i]:.2f}', x1, y1, colour)
        return canvas
    if 'segmentation' in result:
        labels = _enlarged(result['segmentation'], factor)
        tinted = np.uint8(colours)[labels % len(colours)]
        canvas = cv2.addWeighted(canvas, 0.45, tinted, 0.55, 0)
    bottom = 0
    for name, number, label in summary(result, classes, threshold):
        colour = colours[label % len(colours)] if 'segmentation' in result else (30, 26, 24)
        bottom = _write(canvas, f'{name} {number}', 0, bottom, colour, above=False)
    return canvas


def _enlarged(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else pixels


def _line(canvas: np.ndarray) -> int:
    return max(1, round(sum(canvas.shape[:2]) / 800))


def _tint(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    canvas[mask] = (0.55 * canvas[mask] + 0.45 * np.array(colour)).round()
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, outlines, -1, colour, _line(canvas))


def _write(canvas: np.ndarray, text: str, x: int, y: int, colour: tuple[int, int, int], above: bool = True) -> int:
    """Text on a ground of the colour, above y or below it, inside the canvas; where its ground ends."""
    height, width = canvas.shape[:2]
    text = text.encode('ascii', 'replace').decode()  # OpenCV has no other letters
    scale = max(0.4, sum(canvas.shape[:2]) / 2400)
    (across, up), down = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, _line(canvas))
    tall = up + down + 4
    left, top = max(0, min(x, width - across - 4)), max(0, min(y - tall if above else y, height - tall))
    cv2.rectangle(canvas, (left, top), (left + across + 3, top + tall - 1), colour, -1)
    blue, green, red = colour
    pen = (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)
    place = (left + 2, top + up + 2)
    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, pen, _line(canvas), cv2.LINE_AA)
    return top + tall


# --------------------------------------------------------------------------------------------------------------------
# The command


def find_pictures(inputs: Sequence[str], without: Path) -> list[tuple[Path, str]]:
    """Files, and those of folders, each once, with the name of what becomes of it: no two have one.

    Args:
        inputs: Files whatever their suffix, and folders, whose pictures are found by suffix, also in folders inside.
        without: A folder whose files are not meant: where results go.

    Raises:
        PredictError: if one is not there, or a folder has no picture.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    for text in inputs:
        path = Path(text)
        if not path.exists():
            raise PredictError(f'picture {text!r}: there is no such file or folder.')
        files = sorted(path.rglob('*')) if path.is_dir() else [path]
        if path.is_dir():
            files = [file for file in files if file.suffix.lower() in SUFFIXES and file.is_file()]
            files = [file for file in files if not file.resolve().is_relative_to(without.resolve())]
            files = [file for file in files if not any(part.startswith('.') for part in file.relative_to(path).parts)]
            if not files:
                raise PredictError(f'folder {text!r} has no pictures ({", ".join(SUFFIXES)}).')
        for file in files:
            found.setdefault(file.resolve(), (file, file.relative_to(path) if path.is_dir() else Path(file.name)))
    taken: set[str] = set()
    named = []
    for file, relative in found.values():
        base = name = relative.with_suffix('').as_posix()
        for number in range(2, len(found) + 2):  # some disks do not tell A from a
            if name.lower() not in taken:
                break
            name = f'{base}_{number}'
        taken.add(name.lower())
        named.append((file, name))
    return named


def check_targets(targets: Sequence[Path], inputs: Sequence[Path], overwrite: bool) -> None:
    """Looks whether what will be written would replace what is read, or results that are there; makes the folders.

    Raises:
        PredictError: if so.
    """
    read = {(status.st_dev, status.st_ino) for status in map(os.stat, inputs)}
    taken: set[str] = set()
    for target in targets:
        name, key = repr(str(target)), str(target.resolve()).lower()
        if key in taken:
            raise PredictError(f'{name} would be written twice. Name another place for one of the two.')
        taken.add(key)
        if target.is_dir():
            raise PredictError(f'{name} is a folder. Name another place.')
        if target.exists():
            status = target.stat()
            if (status.st_dev, status.st_ino) in read:
                raise PredictError(f'{name} is read here, and would be replaced. Name another place.')
            if not overwrite:
                raise PredictError(f'{name} is there already. Name another place, or add --overwrite.')
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)


def write(path: Path, content: bytes) -> None:
    """Writes a file that is there when it is whole."""
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Run:
    """Predicts pictures, and writes what becomes of them.

    Args:
        model: The model.
        pictures: Files with their names, of `find_pictures`.
        args: Of the command.
    """

    def __init__(self, model: Model, pictures: Sequence[tuple[Path, str]], args: argparse.Namespace) -> None:
        self.model, self.pictures, self.args = model, pictures, args
        self.failed = 0
        self.entries: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        stems = [path.stem for path, _ in pictures]
        numbered = all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems)
        self.numbers = [int(stem) for stem in stems] if numbered else list(range(1, len(stems) + 1))

    def targets(self) -> list[Path]:
        """All that will be written."""
        folders = ['pictures'] + (['segments'] if self.model.task == 'semantic segmentation' else [])
        targets = [Path(self.args.out, folder, f'{name}.png') for folder in folders for _, name in self.pictures]
        return targets + ([self.args.json, self._images_file()] if self.args.json else [])

    def _images_file(self) -> Path:
        return self.args.json.with_name(f'{self.args.json.stem}.images.json')

    def __call__(self) -> int:
        """Predicts them all; the exit code."""
        waiting: list[tuple] = []  # of one size
        try:
            for (path, name), number in zip(self.pictures, self.numbers, strict=True):
                try:
                    image = read_picture(path)
                    seen = resize_picture(image, self.model.meta.get('resize'))
                except PictureError as error:
                    self._fail(path, error)
                    continue
                if waiting and (len(waiting) == self.args.batch_size or waiting[0][-1].shape != seen.shape):
                    self._predict(waiting)
                    waiting = []
                waiting.append((path, name, number, image, seen))
            self._predict(waiting)
        finally:  # after Ctrl-C, too
            if self.args.json:
                self._write_json()
        print(f'{len(self.images)} of {len(self.pictures)} pictures in {self.args.out}')
        return 1 if self.failed else 0

    def _fail(self, path: Path, error: Exception) -> None:
        self.failed += 1
        print(f'Failed: picture {str(path)!r} {error}.', file=sys.stderr)

    def _predict(self, batch: list[tuple]) -> None:
        if not batch:
            return
        try:
            results = self.model.predict_resized([each[-1] for each in batch], [each[3].shape[:2] for each in batch])
        except PictureError as error:
            if len(batch) == 1:
                self._fail(batch[0][0], error)
            else:
                for one in batch:
                    self._predict([one])
            return
        for (path, name, number, image, _), result in zip(batch, results, strict=True):
            self._keep(path, name, number, image, result)

    def _keep(self, path: Path, name: str, number: int, image: np.ndarray, result: dict[str, Any]) -> None:
        classes, threshold = self.model.classes, self.args.score_thr
        told = summary(result, classes, threshold)
        words = [f'{count} {cls}' if 'boxes' in result else f'{cls} {count}' for cls, count, _ in told]
        print(f'{_printable(str(path))}: {_printable(", ".join(words)) or "nothing"}', flush=True)
        height, width = result['size']
        self.images.append({'id': number, 'file_name': str(path), 'height': height, 'width': width})
        if self.args.json:
            self.entries += entries_of(result, classes, number, str(path))
        drawn = {'pictures': draw(image, result, self.model.meta, threshold)}
        if 'segmentation' in result:
            labels = result['segmentation']
            drawn['segments'] = labels if labels.dtype == np.uint8 else labels.astype(np.uint16)
        for folder, pixels in drawn.items():
            write(Path(self.args.out, folder, f'{name}.png'), cv2.imencode('.png', pixels)[1].tobytes())

    def _write_json(self) -> None:
        write(self.args.json, json.dumps(self.entries).encode())
        classes = self.model.classes
        categories = [{'id': category_id(classes, label), 'name': name} for label, name in enumerate(classes)]
        record = {'images': self.images, 'annotations': [], 'categories': categories}
        write(self._images_file(), json.dumps(record).encode())


def _printable(text: str) -> str:
    """Without what a screen obeys."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of the command.

    Raises:
        PredictError: for values that cannot be.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='an ONNX file of tools/export.py --whole')
    parser.add_argument('images', nargs='+', help='pictures, or folders of them')
    parser.add_argument('--out', type=Path, metavar='DIR', help='folder of results (default: predictions/<model>)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, metavar='SCORE', help='draw detections from here on (default: 0.3)'
    )
    parser.add_argument(
        '--json', type=Path, metavar='FILE', help="all results; of detectors in COCO's result format, for pycocotools"
    )
    parser.add_argument('--runtime', choices=['onnxruntime', 'openvino'], default='onnxruntime')
    parser.add_argument('--providers', nargs='+', metavar='NAME', help=f'of onnxruntime (default: {CPU})')
    parser.add_argument('--device', metavar='NAME', help='of openvino (default: CPU)')
    parser.add_argument('--precision', choices=['f32', 'bf16'], help='of openvino (default: f32)')
    parser.add_argument('--threads', type=int, metavar='N', help='that compute (default: what the runtime takes)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='pictures at a time (default: 1)')
    parser.add_argument('--overwrite', action='store_true', help='replace results that are there')
    args = parser.parse_args(argv)
    if not 0 <= args.score_thr <= 1:
        raise PredictError(f'--score-thr {args.score_thr}: expected a score from 0 to 1.')
    for option, value in (('--threads', args.threads), ('--batch-size', args.batch_size)):
        if value is not None and value < 1:
            raise PredictError(f'{option} {value}: expected 1 or more.')
    other = 'openvino' if args.runtime == 'onnxruntime' else 'onnxruntime'
    for name in ('device', 'precision') if other == 'openvino' else ('providers',):
        if getattr(args, name) is not None:
            raise PredictError(f'--{name} is for --runtime {other}.')
    args.out = args.out or Path('predictions', Path(args.model).stem)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    if hasattr(sys.stdout, 'reconfigure'):
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        pictures = find_pictures(args.images, without=args.out)
        model = Model(
            args.model,
            args.runtime,
            providers=args.providers,
            device=args.device or 'CPU',
            threads=args.threads,
            precision=args.precision or 'f32',
        )
        run = Run(model, pictures, args)
        check_targets(run.targets(), [Path(args.model), *(path for path, _ in pictures)], args.overwrite)
        return run()
    except PredictError as error:
        print(f'Error: {_printable(str(error))}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'Error: {error.filename or ""} cannot be written: {error.strerror}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nStopped by Ctrl-C.', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
