"""Draws boxes and masks on a picture, with labels that do not cover each other."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .labels import place_labels, shorten_text, text_colour, the_font

__all__ = ['class_colours', 'draw_objects', 'enlarge']

MASK_OPACITY = 0.45


def class_colours(classes: Sequence[str], palette: Sequence[Sequence[int]] | None = None) -> np.ndarray:
    """A colour for every class, uint8 [classes, 3]: the data set's own, or hues as far apart as they can be."""
    if palette:
        return np.array(palette, dtype=np.uint8)
    golden = (5**0.5 - 1) / 2
    colours = [colorsys.hsv_to_rgb(i * golden % 1, 0.75, (0.95, 0.7)[i // 12 % 2]) for i in range(len(classes))]
    return (255 * np.array(colours)).round().astype(np.uint8)


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """[H, W, ...], each pixel `factor` times in either direction."""
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1) if factor > 1 else pixels


def draw_objects(
    canvas: np.ndarray,
    boxes: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    *,
    font_size: int,
    masks: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    factor: int = 1,
) -> np.ndarray:
    """The picture with objects, the surest ones on top: uint8 [H, W, 3] in RGB. Lines grow with the letters.

    Args:
        canvas: The picture, uint8 [H, W, 3] in RGB; it is painted on.
        boxes: [N, 4], x1, y1, x2, y2 in pixels of the picture over `factor`.
        names: Of the class of each object.
        colours: Of each object, uint8 [N, 3].
        font_size: Of the labels, in pixels.
        masks: bool [N, H / factor, W / factor].
        scores: [N]; they stand in the labels.
        factor: How much larger the picture is than what boxes and masks belong to.
    """
    order = np.arange(len(names)) if scores is None else np.argsort(-scores, kind='stable')
    line = max(1, round(font_size / 8))
    palette = [tuple(map(int, colours[i])) for i in order]
    if masks is not None:
        plain = canvas.copy()
        for i, colour in reversed(list(zip(order, palette, strict=True))):
            _paint_mask(canvas, plain, masks[i], factor, colour, line)

    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    font = the_font(font_size)
    boxes = boxes[order] * factor
    for (x1, y1, x2, y2), colour in reversed(list(zip(boxes, palette, strict=True))):
        right, low = image.width - 1, image.height - 1
        corners = [np.clip(x1, 0, right), np.clip(y1, 0, low), np.clip(x2, 0, right), np.clip(y2, 0, low)]
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            pen.rectangle([float(round(value)) for value in corners], outline=colour, width=line)

    texts = [names[i] if scores is None else f'{names[i]} {scores[i]:.2f}' for i in order]
    texts = [shorten_text(text, image.width - 6, font) for text in texts]
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
    inside = enlarge(mask[top:low, left:right], factor)
    where = slice(top * factor, low * factor), slice(left * factor, right * factor)
    part = canvas[where]
    part[inside] = ((1 - MASK_OPACITY) * plain[where][inside] + MASK_OPACITY * np.array(colour)).round()
    outlines, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    edge = np.ascontiguousarray(part)
    cv2.drawContours(edge, outlines, -1, colour, line)
    part[:] = edge
