"""Text on pictures: a font of any size, and places where labels do not cover each other."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ImageFont

__all__ = ['place_labels', 'shorten_text', 'text_colour', 'the_font']


@functools.lru_cache(maxsize=8)
def the_font(size: int) -> ImageFont.FreeTypeFont:
    """A font of letters `size` pixels high: of matplotlib, which has most alphabets, or Pillow's own."""
    matplotlib = importlib.util.find_spec('matplotlib')
    if matplotlib is not None and matplotlib.origin:
        path = Path(matplotlib.origin).parent / 'mpl-data' / 'fonts' / 'ttf' / 'DejaVuSans.ttf'
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def shorten_text(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    """The text, cut at its end where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + '…') > width:
        text = text[:-1]
    return text + '…'


def text_colour(colour: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever reads better on a colour."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def place_labels(boxes: np.ndarray, sizes: Sequence[tuple[int, int]], canvas: tuple[int, int]) -> list[tuple[int, int]]:
    """A place for the label of each box: the first of several around it that no earlier label covers.

    Args:
        boxes: [N, 4] as (x1, y1, x2, y2), the most important first.
        sizes: Width and height of each label in pixels.
        canvas: Height and width of the picture, within which labels stay.

    Returns:
        The left upper corner (x, y) of each label.
    """
    height, width = canvas
    taken = np.zeros((0, 4))
    corners = []
    for (x1, y1, x2, y2), (w, h) in zip(np.asarray(boxes, dtype=float), sizes, strict=True):
        places = np.array(
            [
                *((x, y) for y in (y1 - h, y2, y1, y2 - h) for x in (x1, x2 - w)),  # above, below, inside
                *((x, y) for x in (x2, x1 - w) for y in (y1, y2 - h)),  # beside
                *((x1, y1 + step * h) for step in range(1, 8)),
                *((x1, y1 - step * h) for step in range(2, 8)),
            ]
        )
        places[:, 0] = places[:, 0].clip(0, max(0, width - w))
        places[:, 1] = places[:, 1].clip(0, max(0, height - h))
        places = places.round()
        covered = _overlaps(np.concatenate([places, places + np.array([w, h])], axis=1), taken)
        x, y = places[int(covered.argmin())]  # the first of the best
        taken = np.concatenate([taken, [[x, y, x + w, y + h]]])
        corners.append((int(x), int(y)))
    return corners


def _overlaps(boxes: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Pixels of each of the boxes [M, 4] that the others [N, 4] cover, summed: [M]."""
    low = np.maximum(boxes[:, None, :2], taken[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], taken[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2).sum(axis=1)
