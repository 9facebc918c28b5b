"""Reads pictures with the data pipeline of a config, from a file or an array."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ..datasets.bad_data.images import file_fault
from ..utils.errors import UserError

__all__ = ['ImageError', 'ImageReader', 'to_rgb']


class ImageError(UserError):
    """A picture that cannot be read; others may well be."""


class ImageReader:
    """Reads what a pipeline begins with.

    A file is read by the config's own first transform, so that colours, and the turn that a camera notes in EXIF, are
    those of a training.

    Args:
        load: The built ``LoadImageFromFile`` of the pipeline.
    """

    def __init__(self, load: Callable[[dict], dict | None]) -> None:
        self.load = load

    def __call__(self, image: str | os.PathLike | np.ndarray) -> dict[str, Any]:
        """What the next transform takes: ``img`` [H, W, 3] in BGR, its shape and its path.

        Raises:
            ImageError: if a file cannot be read.
            ValueError: for an array of another shape or type.
        """
        if isinstance(image, np.ndarray):
            return self._from_array(image)
        path = os.fspath(image)
        fault = file_fault(path)
        if fault is not None:
            detail = 'there is no such file' if fault.kind == 'missing' else fault.detail
            raise ImageError(f'image {path!r}: {detail}.')
        try:
            results = self.load({'img_path': path, 'img_id': 0})
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything
            raise ImageError(f'image {path!r} cannot be read: it is damaged or no image.') from error
        if results is None:  # of a loader with ignore_empty
            raise ImageError(f'image {path!r} cannot be read: it is damaged or no image.')
        return results

    def _from_array(self, image: np.ndarray) -> dict[str, Any]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f'image: expected an array [H, W, 3] of uint8 in RGB, not {image.dtype} {image.shape}')
        color_type = getattr(self.load, 'color_type', 'color')
        if not str(color_type).startswith('color'):
            raise ValueError(f'image: the config reads pictures as {color_type!r}, which an array in RGB is not')
        pixels = np.ascontiguousarray(image[..., ::-1])
        if getattr(self.load, 'to_float32', False):
            pixels = pixels.astype(np.float32)
        shape = pixels.shape[:2]
        return {'img': pixels, 'img_path': '', 'img_id': 0, 'img_shape': shape, 'ori_shape': shape}


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """A copy in RGB, uint8 [H, W, 3], of what a pipeline has read: BGR, grey or with an alpha channel."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    pixels = pixels[..., [0, 0, 0]] if pixels.shape[2] < 3 else pixels[..., 2::-1]
    if pixels.dtype == np.uint16:
        pixels = pixels >> 8
    return np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8))
