"""A prediction on its picture.

Pictures whose longer edge is below `SMALL` are enlarged by a whole number, pixel by pixel, so that text fits on them;
text and lines grow with large ones. Boxes have their label beside them; what a segmentation or a classification found
stands in a panel at the right, whose size depends on the picture and the classes alone: frames of a video stay equal.
"""

from typing import TYPE_CHECKING

import numpy as np

from ..drawing.legend import DARK, _paint_segments, _percent, _with_panel
from ..drawing.objects import class_colours, draw_objects, enlarge

if TYPE_CHECKING:
    from .prediction import Prediction

__all__ = ['colours_of', 'draw_prediction']

SMALL = 480  # pixels
FONT_SHARE = 0.019  # of the mean edge
FONT_SIZES = (13, 72)


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
        _paint_segments(canvas, enlarge(prediction.segmentation, factor), colours, max(1, font_size // 16))
        rows = [
            (prediction.name_of(label), _percent(share), colours[label] if 0 <= label < len(colours) else DARK)
            for label, share in prediction.present()
        ]
    else:
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        rows = [(prediction.name_of(int(label)), _percent(float(score)), None) for label, score in pairs]
    return _with_panel(canvas, rows, prediction.classes, font_size)


def colours_of(prediction: 'Prediction') -> np.ndarray:
    """A colour for every class, uint8 [classes, 3]."""
    return class_colours(prediction.classes, prediction.palette)


# --------------------------------------------------------------------------------------------------------------------
# Segments, and the panel
