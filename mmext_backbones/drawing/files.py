"""Picture files that are whole or not there."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.files import PARTIAL, move_into_place, remove

__all__ = ['write_label_map', 'write_picture']


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [H, W, 3] in RGB, in the format of the suffix; folders on the way are made.

    Raises:
        UserError: for a suffix that OpenCV knows no format of.
    """
    try:
        done, data = cv2.imencode(path.suffix, picture[..., ::-1])
    except cv2.error:
        done = False
    if not done:
        raise UserError(f'picture {str(path)!r}: its suffix names no format that can be written, take .png or .jpg.')
    partial = _partial(path)
    try:
        partial.write_bytes(data.tobytes())
        move_into_place(partial, path)
    except OSError:
        remove(partial)
        raise


def write_label_map(path: Path, labels: np.ndarray, palette: np.ndarray) -> None:
    """Writes a map of labels as a PNG whose values are the labels.

    Args:
        path: Ends in ``.png``.
        labels: Integers [H, W]. Up to 255 they are a palette's numbers; larger ones need 16 bits, without colours.
        palette: Colours of the labels, uint8 [classes, 3].
    """
    if labels.max(initial=0) > 255:
        image = Image.fromarray(labels.astype(np.uint16))
    else:
        image = Image.fromarray(labels.astype(np.uint8))
        image.putpalette(palette[:256].astype(np.uint8).tobytes())
    partial = _partial(path)
    try:
        image.save(partial, format='PNG')
        move_into_place(partial, path)
    except OSError:
        remove(partial)
        raise


def _partial(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(path.name + PARTIAL)
