"""Picture files that are whole or not there."""

from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..utils.console import say
from ..utils.errors import UserError, did_you_mean
from ..utils.files import PARTIAL, move_into_place, remove

__all__ = ['check_out', 'save_figure', 'save_picture', 'write_label_map', 'write_picture']

SUFFIXES = ('.png', '.jpg', '.jpeg')


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


def check_out(out: str) -> Path:
    """The path of a picture, before anything is computed.

    Raises:
        UserError: for a suffix of no picture, or a folder that cannot be written.
    """
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f'--out {out}: expected a picture, {", ".join(SUFFIXES)}.{did_you_mean(path.suffix, SUFFIXES)}')
    if path.is_dir():
        raise UserError(f'--out {out}: there is a folder of this name. Name a file.')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial(path)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise UserError(f'--out {out}: {path.parent} is no folder that can be written ({error.strerror}).') from error
    return path


def save_picture(path: Path, image: np.ndarray) -> None:
    """Writes RGB [H, W, 3] whole, and says where.

    Raises:
        UserError: if the picture cannot be written.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, 80] if path.suffix.lower() != '.png' else []
    done, data = cv2.imencode(path.suffix, image[..., ::-1], options)
    if not done:
        raise UserError(f'{path}: a picture of {image.shape[1]} x {image.shape[0]} pixels cannot be written as such.')
    _write(path, lambda partial: partial.write_bytes(data.tobytes()))


def save_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
    """As `save_picture`, for one of matplotlib's."""
    _write(path, lambda partial: figure.savefig(partial, dpi=dpi))


def _write(path: Path, write) -> None:
    said = 'replaced' if path.exists() else 'written'
    partial = _partial(path)
    try:
        write(partial)
        move_into_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    say(f'{said:<12} {path}')


def _partial(path: Path) -> Path:
    """Its end stays that of a picture, from which the format follows."""
    return path.with_name(f'{path.stem}{PARTIAL}{path.suffix}')
