"""The prediction of one picture, drawn and as JSON."""

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing.files import write_picture
from ..drawing.legend import _percent, _with_panel, class_shares, draw_segments
from ..drawing.objects import class_colours, draw_objects, enlarge
from ..utils.printable import one_line

__all__ = ['Prediction', 'category_ids', 'colours_of', 'decode_mask', 'draw_prediction', 'encode_map', 'encode_mask']

# COCO numbers its 80 classes from 1 to 90; these numbers are of no class
COCO_GAPS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO_ENDS = (80, 'person', 'toothbrush')
SMALL = 480  # pixels
FONT_SHARE = 0.019  # of the mean edge
FONT_SIZES = (13, 72)


@dataclass(eq=False)
class Prediction:
    """What a network says about one picture of H x W pixels; coordinates are pixels of that picture.

    Attributes:
        kind: ``'detection'``, ``'segmentation'`` or ``'classification'``.
        size: (H, W), after the turn that EXIF asks for.
        classes: Names of all classes the network knows.
        boxes: Of a detection, float32 [N, 4] as (x1, y1, x2, y2).
        scores: Of a detection or a classification, float32 [N]; best first as the network gives them.
        labels: The class of each score, int64 [N].
        masks: Of a detection with masks, bool [N, H, W].
        segmentation: Of a segmentation, the class of each pixel, int32 [H, W]; -1 where it was not asked for.
        seconds: Time that preparing the picture and the network took.
        image: The picture itself, uint8 [H, W, 3] in RGB.
        palette: Colours (red, green, blue) of the classes; empty to have some chosen.
    """

    kind: str
    size: tuple[int, int]
    classes: tuple[str, ...] = field(repr=False)
    boxes: np.ndarray | None = field(default=None, repr=False)
    scores: np.ndarray | None = field(default=None, repr=False)
    labels: np.ndarray | None = field(default=None, repr=False)
    masks: np.ndarray | None = field(default=None, repr=False)
    segmentation: np.ndarray | None = field(default=None, repr=False)
    seconds: float = 0.0
    image: np.ndarray | None = field(default=None, repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(default=(), repr=False)

    def name_of(self, label: int) -> str:
        """The name of a class."""
        return self.classes[label] if 0 <= label < len(self.classes) else f'class {label}'

    def present(self) -> list[tuple[int, float]]:
        """Of a segmentation: each class that a pixel has, with its share of the pixels, largest first.

        Raises:
            ValueError: for another kind of prediction.
        """
        self._expect('segmentation')
        return class_shares(self.segmentation)

    def shares(self) -> dict[str, float]:
        """As `present`, by name; classes of one name are added."""
        shares: dict[str, float] = {}
        for label, share in self.present():
            name = self.name_of(label)
            shares[name] = shares.get(name, 0.0) + share
        return shares

    def summary(self, threshold: float = 0.3) -> str:
        """One line for a person.

        Args:
            threshold: Detections below this score are not counted.
        """
        if self.kind == 'segmentation':
            return ', '.join(f'{one_line(name)} {share:.1%}' for name, share in self.shares().items()) or 'nothing'
        if self.kind == 'classification':
            pairs = zip(self.labels, self.scores, strict=True)
            return ', '.join(f'{one_line(self.name_of(int(label)))} {score:.2f}' for label, score in pairs)
        counts = Counter(self.name_of(int(label)) for label in self.labels[self.scores >= threshold])
        return ', '.join(f'{count} {one_line(name)}' for name, count in counts.most_common()) or 'nothing'

    def to_dict(self, threshold: float = 0.0) -> dict[str, Any]:
        """As plain values that JSON can hold.

        Args:
            threshold: Detections below this score are left out.

        Returns:
            ``kind``, ``size``, ``seconds`` and, by kind: ``objects``, each with ``label``, ``class``, ``score``,
            ``box`` (x1, y1, x2, y2) and, where there are masks, ``mask`` (COCO's run lengths); ``shares`` by class and
            ``map``, see `encode_map`; or ``top``, each with ``label``, ``class`` and ``score``.
        """
        values = {'kind': self.kind, 'size': list(self.size), 'seconds': round(self.seconds, 4)}
        if self.kind == 'segmentation':
            return {**values, 'shares': self.shares(), 'map': encode_map(self.segmentation)}
        entries = []
        for i in np.flatnonzero(self.scores >= threshold):
            label = int(self.labels[i])
            entry = {'label': label, 'class': self.name_of(label), 'score': float(self.scores[i])}
            if self.boxes is not None:
                entry['box'] = [float(value) for value in self.boxes[i]]
            if self.masks is not None:
                entry['mask'] = encode_mask(self.masks[i])
            entries.append(entry)
        return {**values, 'objects' if self.kind == 'detection' else 'top': entries}

    def crops(self, threshold: float = 0.3) -> list[tuple[int, np.ndarray]]:
        """Of a detection: the class of each object and its box cut out of the picture, uint8 [h, w, 3] in RGB.

        Args:
            threshold: Detections below this score are left out.

        Raises:
            ValueError: for another kind of prediction, or one that has lost its picture.
        """
        self._expect('detection')
        if self.image is None:
            raise ValueError('this prediction has no image to cut from')
        found, (height, width) = [], self.size
        for i in np.flatnonzero(self.scores >= threshold):
            low = np.floor(self.boxes[i, :2]).astype(int).clip(0)
            right, bottom = np.ceil(self.boxes[i, 2:]).astype(int).clip(max=(width, height))
            if right > low[0] and bottom > low[1]:
                found.append((int(self.labels[i]), self.image[low[1] : bottom, low[0] : right]))
        return found

    def to_coco(self, image_id: int, threshold: float = 0.0) -> list[dict[str, Any]]:
        """Of a detection: entries of COCO's result format, see `category_ids` for the numbers of the classes.

        Args:
            image_id: COCO's number of the picture.
            threshold: Detections below this score are left out.

        Raises:
            ValueError: for another kind of prediction.
        """
        self._expect('detection')
        ids = category_ids(self.classes)
        entries = []
        for i in np.flatnonzero(self.scores >= threshold):
            x1, y1, x2, y2 = (float(value) for value in self.boxes[i])
            label = int(self.labels[i])
            entry = {
                'image_id': image_id,
                'category_id': ids[label],
                'bbox': [x1, y1, x2 - x1, y2 - y1],
                'score': float(self.scores[i]),
            }
            if self.masks is not None:
                entry['segmentation'] = encode_mask(self.masks[i])
            entries.append(entry)
        return entries

    def drawn(self, threshold: float = 0.3, text_scale: float = 1.0) -> np.ndarray:
        """The picture with what was predicted, uint8 [H', W', 3] in RGB; small pictures are enlarged, see `drawing`.

        Args:
            threshold: Detections below this score are left out.
            text_scale: Of letters and lines, for a picture that will be shown smaller than it is.
        """
        from .prediction import draw_prediction

        return draw_prediction(self, threshold, text_scale)

    def draw(self, path: str | os.PathLike, threshold: float = 0.3) -> None:
        """Writes `drawn` to a file, over one that is there.

        Args:
            path: Its suffix says the format: ``.png``, ``.jpg``, ...
            threshold: Detections below this score are left out.
        """
        write_picture(Path(path), self.drawn(threshold))

    def _expect(self, kind: str) -> None:
        if self.kind != kind:
            raise ValueError(f'a prediction of kind {self.kind!r}: expected {kind!r}')


def category_ids(classes: tuple[str, ...]) -> list[int]:
    """COCO's numbers of classes: 1, 2, ... in their order; with COCO's own gaps for COCO's own 80 classes."""
    gaps = COCO_GAPS if (len(classes), classes[0], classes[-1]) == COCO_ENDS else ()
    return [number for number in range(1, len(classes) + len(gaps) + 1) if number not in gaps]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask, bool [H, W], as COCO's compressed run lengths: ``size`` [H, W] and ``counts``, a text."""
    from pycocotools import mask as coder  # there where mmdet is

    lengths = coder.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {'size': [int(edge) for edge in lengths['size']], 'counts': lengths['counts'].decode('ascii')}


def decode_mask(lengths: dict[str, Any]) -> np.ndarray:
    """The mask, bool [H, W], of what `encode_mask` gave."""
    from pycocotools import mask as coder

    return coder.decode({**lengths, 'counts': lengths['counts'].encode('ascii')}).astype(bool)


def encode_map(labels: np.ndarray) -> dict[str, Any]:
    """A map of labels, integers [H, W], as runs of equal labels, row after row: ``size``, ``labels`` and ``lengths``.

    ``np.repeat(labels, lengths).reshape(size)`` is the map again.
    """
    flat = labels.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=flat[:1] - 1)) if flat.size else np.zeros(0, int)
    lengths = np.diff(starts, append=flat.size)
    return {'size': list(labels.shape), 'labels': flat[starts].tolist(), 'lengths': lengths.tolist()}


def draw_prediction(prediction: 'Prediction', threshold: float, text_scale: float = 1.0) -> np.ndarray:
    """What was predicted on its picture, uint8 [H', W', 3] in RGB.

    Args:
        prediction: With its `image`.
        threshold: Detections below this score are left out.
        text_scale: Of letters and lines.

    Raises:
        ValueError: if the prediction has lost its picture.
    """
    if prediction.image is None:
        raise ValueError('this prediction has no image to draw on')
    factor = max(1, -(-SMALL // max(prediction.size)))
    canvas = enlarge(prediction.image, factor).copy()
    font_size = round(text_scale * np.clip(round(FONT_SHARE * sum(canvas.shape[:2]) / 2), *FONT_SIZES))
    colours = colours_of(prediction)
    if prediction.kind == 'detection':
        kept = np.flatnonzero(prediction.scores >= threshold)
        return draw_objects(
            canvas,
            prediction.boxes[kept],
            [prediction.name_of(int(label)) for label in prediction.labels[kept]],
            colours[prediction.labels[kept] % len(colours)],
            masks=None if prediction.masks is None else prediction.masks[kept],
            scores=prediction.scores[kept],
            factor=factor,
            font_size=font_size,
        )
    if prediction.kind == 'segmentation':
        labels = enlarge(prediction.segmentation, factor)
        return draw_segments(canvas, labels, prediction.classes, colours, font_size, prediction.name_of)
    pairs = zip(prediction.labels, prediction.scores, strict=True)
    rows = [(prediction.name_of(int(label)), _percent(float(score)), None) for label, score in pairs]
    return _with_panel(canvas, rows, prediction.classes, font_size)


def colours_of(prediction: 'Prediction') -> np.ndarray:
    """A colour for every class, uint8 [classes, 3]."""
    return class_colours(prediction.classes, prediction.palette)
