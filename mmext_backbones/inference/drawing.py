"""A prediction on its picture.

Pictures whose longer edge is below `SMALL` are enlarged by a whole number, pixel by pixel, so that text fits on them;
text and lines grow with large ones. Boxes have their label beside them; what a segmentation or a classification found
stands in a panel at the right, whose size depends on the picture and the classes alone: frames of a video stay equal.
"""

import colorsys
from typing import TYPE_CHECKING

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .labels import place_labels, shorten_text, text_colour, the_font

if TYPE_CHECKING:
    from .prediction import Prediction

__all__ = ['colours_of', 'draw_prediction']

SMALL = 480  # pixels
MASK_OPACITY = 0.45
SEGMENT_OPACITY = 0.55
FONT_SHARE = 0.019  # of the mean edge
FONT_SIZES = (13, 72)
PANEL_LETTERS = 24  # widths of a letter that a name in the panel may have
PANEL_ROWS = 8  # that fit on any picture
DARK, LIGHT = (24, 26, 30), (235, 235, 235)


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
    canvas = _enlarge(prediction.image, factor).copy()
    font_size = round(text_scale * np.clip(round(FONT_SHARE * sum(canvas.shape[:2]) / 2), *FONT_SIZES))
    colours = colours_of(prediction)
    if prediction.kind == 'detection':
        return _draw_objects(prediction, canvas, factor, colours, font_size, threshold)
    if prediction.kind == 'segmentation':
        _paint_segments(canvas, _enlarge(prediction.segmentation, factor), colours, max(1, font_size // 16))
        rows = [
            (prediction.name_of(label), _percent(share), colours[label] if 0 <= label < len(colours) else DARK)
            for label, share in prediction.present()
        ]
    else:
        pairs = zip(prediction.labels, prediction.scores, strict=True)
        rows = [(prediction.name_of(int(label)), _percent(float(score)), None) for label, score in pairs]
    return _with_panel(canvas, rows, prediction.classes, font_size)


def colours_of(prediction: 'Prediction') -> np.ndarray:
    """A colour for every class, uint8 [classes, 3]: the data set's own, or hues as far apart as they can be."""
    if prediction.palette:
        return np.array(prediction.palette, dtype=np.uint8)
    golden = (5**0.5 - 1) / 2
    colours = [
        colorsys.hsv_to_rgb(i * golden % 1, 0.75, (0.95, 0.7)[i // 12 % 2]) for i in range(len(prediction.classes))
    ]
    return (255 * np.array(colours)).round().astype(np.uint8)


def _percent(share: float) -> str:
    return f'{share:.1%}' if share >= 0.0005 else '<0.1%'


def _enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else pixels


# --------------------------------------------------------------------------------------------------------------------
# Boxes and masks


def _draw_objects(
    prediction: 'Prediction', canvas: np.ndarray, factor: int, colours: np.ndarray, font_size: int, threshold: float
) -> np.ndarray:
    kept = np.flatnonzero(prediction.scores >= threshold)
    kept = kept[np.argsort(-prediction.scores[kept], kind='stable')]
    line = max(1, round(font_size / 8))
    labels = prediction.labels[kept]
    palette = [tuple(map(int, colours[label % len(colours)])) for label in labels]
    if prediction.masks is not None:
        plain = canvas.copy()
        for index, colour in reversed(list(zip(kept, palette, strict=True))):
            _paint_mask(canvas, plain, prediction.masks[index], factor, colour, line)

    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    font = the_font(font_size)
    boxes = prediction.boxes[kept] * factor
    for (x1, y1, x2, y2), colour in reversed(list(zip(boxes, palette, strict=True))):
        right, low = image.width - 1, image.height - 1
        corners = [np.clip(x1, 0, right), np.clip(y1, 0, low), np.clip(x2, 0, right), np.clip(y2, 0, low)]
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            pen.rectangle([float(round(value)) for value in corners], outline=colour, width=line)

    texts = [
        shorten_text(f'{prediction.name_of(int(label))} {prediction.scores[index]:.2f}', image.width - 6, font)
        for index, label in zip(kept, labels, strict=True)
    ]
    height = round(1.4 * font_size)
    sizes = [(round(font.getlength(text)) + 6, height) for text in texts]
    places = place_labels(boxes, sizes, (image.height, image.width))
    for text, (x, y), (w, h), colour in reversed(list(zip(texts, places, sizes, palette, strict=True))):
        pen.rectangle([x, y, x + w - 1, y + h - 1], fill=colour)
        pen.text((x + 3, y + h / 2), text, fill=text_colour(colour), font=font, anchor='lm')
    return np.asarray(image)


def _paint_mask(
    canvas: np.ndarray, plain: np.ndarray, mask: np.ndarray, factor: int, colour: tuple[int, int, int], line: int
) -> None:
    """Tints the pixels of a mask, those of the plain picture so that no heap of masks hides it, and outlines it."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, low, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    inside = _enlarge(mask[top:low, left:right], factor)
    where = slice(top * factor, low * factor), slice(left * factor, right * factor)
    part = canvas[where]
    part[inside] = ((1 - MASK_OPACITY) * plain[where][inside] + MASK_OPACITY * np.array(colour)).round()
    outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    edge = np.ascontiguousarray(part)
    cv2.drawContours(edge, outlines, -1, colour, line)
    part[:] = edge


# --------------------------------------------------------------------------------------------------------------------
# Segments, and the panel


def _paint_segments(canvas: np.ndarray, labels: np.ndarray, colours: np.ndarray, line: int) -> None:
    """Tints every pixel by its class; a light line runs where classes meet. Labels of no class stay as they are."""
    known = (labels >= 0) & (labels < len(colours))
    tint = colours[np.where(known, labels, 0)]
    blended = cv2.addWeighted(canvas, 1 - SEGMENT_OPACITY, tint, SEGMENT_OPACITY, 0)
    canvas[known] = blended[known]
    meet = np.zeros(labels.shape, dtype=np.uint8)
    meet[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    meet[1:] |= labels[1:] != labels[:-1]
    canvas[cv2.dilate(meet, np.ones((line, line), np.uint8)) > 0] = LIGHT


def _with_panel(
    canvas: np.ndarray, rows: list[tuple[str, str, np.ndarray | None]], classes: tuple[str, ...], font_size: int
) -> np.ndarray:
    """The canvas with a panel at its right: a line with colour, name and number for each class, in their order.

    Without a colour a class has a line without a square.
    """
    font = the_font(font_size)
    pad, step = round(0.6 * font_size), round(1.6 * font_size)
    longest = max(font.getlength(name) for name in classes)
    name_width = round(min(longest, PANEL_LETTERS * 0.6 * font_size))
    number_width = round(font.getlength('100.0%'))
    width = font_size + name_width + number_width + 4 * pad
    height = max(canvas.shape[0], min(len(classes), PANEL_ROWS) * step + 2 * pad)
    image = Image.new('RGB', (canvas.shape[1] + width, height), DARK)
    image.paste(Image.fromarray(canvas), (0, 0))
    pen = ImageDraw.Draw(image)
    left = canvas.shape[1] + pad
    fitting = max(1, (height - 2 * pad) // step)
    shown = rows if len(rows) <= fitting else rows[: fitting - 1]
    for i, (name, number, colour) in enumerate(shown):
        middle = pad + i * step + step / 2
        text_left = left
        if colour is not None:
            square = [left, middle - font_size / 2, left + font_size - 1, middle + font_size / 2 - 1]
            pen.rectangle(square, fill=tuple(map(int, colour)), outline=LIGHT)
            text_left += font_size + pad
        text = shorten_text(name, name_width, font)
        pen.text((text_left, middle), text, fill=LIGHT, font=font, anchor='lm')
        pen.text((image.width - pad, middle), number, fill=LIGHT, font=font, anchor='rm')
    if len(shown) < len(rows):
        middle = pad + len(shown) * step + step / 2
        text = f'and {len(rows) - len(shown)} more'
        pen.text((left + font_size + pad, middle), text, fill=LIGHT, font=font, anchor='lm')
    return np.asarray(image)
