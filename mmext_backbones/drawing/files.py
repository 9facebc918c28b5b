"""Pictures and maps of labels written to files, each whole or not at all."""

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..utils.console import say
from ..utils.errors import UserError, did_you_mean
from ..utils.files import check_place, in_place, keep_inputs

__all__ = ['check_out', 'save_figure', 'save_picture', 'write_label_map', 'write_picture']

SUFFIXES = ('.png', '.jpg', '.jpeg')


def write_picture(path: Path, picture: np.ndarray, options: list[int] | None = None) -> None:
    """Writes a picture, uint8 [H, W, 3] in RGB, in the format of the suffix; folders on the way are made.

    Args:
        path: Of the file.
        picture: To write.
        options: Of OpenCV's encoder.

    Raises:
        UserError: for a suffix that OpenCV knows no format of, or a picture that the format does not take.
    """
    try:
        done, data = cv2.imencode(path.suffix, picture[..., ::-1], options or [])
    except cv2.error:
        raise UserError(
            f'picture {str(path)!r}: its suffix names no format that can be written, take .png or .jpg.'
        ) from None
    if not done:
        height, width = picture.shape[:2]
        raise UserError(f'picture {str(path)!r}: {width} x {height} pixels cannot be written in this format.')
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_place(path) as partial:
        partial.write_bytes(data.tobytes())


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_place(path) as partial:
        image.save(partial, format='PNG')


def check_out(out: str, inputs: Iterable[str] | None = None) -> Path:
    """The path of a picture that ``--out`` names, before anything is computed.

    Args:
        out: What was given.
        inputs: Files that are read, which stay.

    Raises:
        UserError: for a suffix of no picture, a folder that cannot be written, or one of the inputs.
    """
    path = Path(out)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f'--out {out}: expected a picture, {", ".join(SUFFIXES)}.{did_you_mean(path.suffix, SUFFIXES)}')
    keep_inputs(f'--out {out}', [path], inputs or ())
    check_place(f'--out {out}', path)
    return path


def save_picture(path: Path, picture: np.ndarray) -> None:
    """As `write_picture`, JPEG at quality 80; says where."""
    _saying(path, lambda: write_picture(path, picture, _jpeg(path)))


def save_figure(path: Path, figure: Figure, dpi: int = 110) -> None:
    """As `save_picture`, for one of matplotlib's."""

    def write() -> None:
        with in_place(path) as partial:
            figure.savefig(partial, dpi=dpi)

    _saying(path, write)


def _jpeg(path: Path) -> list[int]:
    return [cv2.IMWRITE_JPEG_QUALITY, 80] if path.suffix.lower() != '.png' else []


def _saying(path: Path, write: Callable[[], None]) -> None:
    said = 'replaced' if path.exists() else 'written'
    write()
    say(f'{said:<12} {path}')
