"""Segments painted on a picture, and the panel beside it with a line for each class."""

import math
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageDraw

from .labels import shorten_text, the_font

SEGMENT_OPACITY = 0.55
PANEL_LETTERS = 24  # widths of a letter that a name in the panel may have
PANEL_ROWS = 8  # that fit on any picture
DARK, LIGHT = (24, 26, 30), (235, 235, 235)


def class_shares(labels: np.ndarray) -> list[tuple[int, float]]:
    """Each class of a map of labels, integers [H, W], with its share of the pixels, largest first; none below 0."""
    found, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind='stable')
    return [(int(found[i]), float(counts[i] / labels.size)) for i in order if found[i] >= 0]


def draw_segments(
    canvas: np.ndarray,
    labels: np.ndarray,
    classes: tuple[str, ...],
    colours: np.ndarray,
    font_size: int,
    name_of: Callable[[int], str],
) -> np.ndarray:
    """A picture whose pixels are tinted by their classes, and a panel with the share of each at its right.

    Args:
        canvas: uint8 [H, W, 3] in RGB; it is drawn on.
        labels: The class of each pixel, integers [H, W].
        classes: Names of all classes, which decide how wide the panel is.
        colours: Of the classes, uint8 [classes, 3].
        font_size: In pixels.
        name_of: The name of a label, also of one that is no class.
    """
    _paint_segments(canvas, labels, colours, max(1, font_size // 16))
    rows = [
        (name_of(label), _percent(share), colours[label] if label < len(colours) else DARK)
        for label, share in class_shares(labels)
    ]
    return _with_panel(canvas, rows, classes, font_size)


def _percent(share: float) -> str:
    return f'{share:.1%}' if share >= 0.0005 else '<0.1%'


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
    name_width = math.ceil(min(longest, PANEL_LETTERS * 0.6 * font_size))
    number_width = math.ceil(font.getlength('100.0%'))
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
