"""Reads pictures with the data pipeline of a config: files, and what is in memory."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
import torch
from PIL import Image

from ..datasets.bad_data.images import file_fault
from .arrays import ImageError, array_of, to_pixels

__all__ = ['ImageError', 'ImageReader', 'Picture']

Picture = str | os.PathLike | bytes | BinaryIO | np.ndarray | torch.Tensor | Image.Image


class ImageReader:
    """Reads what a pipeline begins with.

    A file is read by the config's own first transform, so that colours, and the turn that a camera notes in EXIF, are
    those of a training.

    Args:
        load: The built ``LoadImageFromFile`` of the pipeline.
    """

    def __init__(self, load: Callable[[dict], dict | None]) -> None:
        self.load = load

    def __call__(self, image: Picture) -> dict[str, Any]:
        """What the next transform takes: ``img`` [H, W, 3] in BGR, its shape and its path.

        Args:
            image: A path; the bytes of a file, or a file that is open; a picture of PIL; or an array or a tensor, see
                `arrays`.

        Raises:
            ImageError: if it cannot be read.
            TypeError: for anything else.
        """
        if isinstance(image, (np.ndarray, torch.Tensor, Image.Image)):
            return self._from_array(to_pixels(array_of(image)))
        content = image.read() if hasattr(image, 'read') else image
        if isinstance(content, (bytes, bytearray, memoryview)):
            return self._from_bytes(bytes(content))
        if not isinstance(image, (str, os.PathLike)):
            hint = ': predict(images) takes several' if isinstance(image, (list, tuple)) else ''
            raise TypeError(
                'image: expected a path, bytes, a PIL image, an array or a tensor, not '
                f'{type(image).__module__}.{type(image).__qualname__}{hint}'
            )
        path = os.fspath(image)
        if isinstance(path, str) and '://' in path:
            raise ImageError(f'image {path!r}: addresses are not fetched. Download it, and name the file.')
        return self._from_file(path, f'image {path!r}')

    def _from_file(self, path: str, name: str) -> dict[str, Any]:
        fault = file_fault(path)
        if fault is not None:
            detail = 'there is no such file' if fault.kind == 'missing' else fault.detail
            raise ImageError(f'{name}: {detail}.')
        try:
            results = self.load({'img_path': path, 'img_id': 0})
        except MemoryError:
            raise
        except Exception as error:  # decoders raise anything
            raise ImageError(f'{name} cannot be read: it is damaged or no image.') from error
        if results is None:  # of a loader with ignore_empty
            raise ImageError(f'{name} cannot be read: it is damaged or no image.')
        return results

    def _from_bytes(self, content: bytes) -> dict[str, Any]:
        """As a file with this content: the config's own transform reads files alone."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / 'image'
            path.write_bytes(content)
            return {**self._from_file(str(path), f'image of {len(content)} bytes'), 'img_path': ''}

    def _from_array(self, pixels: np.ndarray) -> dict[str, Any]:
        color_type = str(getattr(self.load, 'color_type', 'color'))
        if color_type.startswith('color'):
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        elif color_type.startswith('grayscale'):
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        else:
            raise ImageError(f'image: the config reads pictures as {color_type!r}, which only a file can be read as.')
        if getattr(self.load, 'to_float32', False):
            pixels = pixels.astype(np.float32)
        shape = pixels.shape[:2]
        return {'img': pixels, 'img_path': '', 'img_id': 0, 'img_shape': shape, 'ori_shape': shape}
