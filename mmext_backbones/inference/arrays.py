"""Pictures in memory as pixels: arrays, tensors and PIL's pictures of any mode."""

import numpy as np
import torch
from PIL import Image, ImageOps

from ..utils.errors import UserError

__all__ = ['ImageError', 'array_of', 'to_pixels']

CHANNELS = (1, 3, 4)  # grey, RGB, RGB with transparency
DEEP = ('I', 'F')  # modes of PIL whose values PIL would cut at 255


class ImageError(UserError, ValueError):
    """A picture that cannot be read; others may well be."""


def array_of(image: np.ndarray | torch.Tensor | Image.Image) -> np.ndarray:
    """The values of a picture, channels last; a picture of PIL turned as its camera notes, and in RGB or deep grey.

    Raises:
        ImageError: if it cannot be read, or is a batch.
    """
    if isinstance(image, Image.Image):
        try:
            image = ImageOps.exif_transpose(image)
            return np.asarray(image if image.mode.startswith(DEEP) else image.convert('RGB'))
        except (OSError, ValueError, SyntaxError) as error:  # of a file that PIL reads only now
            raise ImageError(f'image: this PIL image cannot be read: {error}') from error
    if isinstance(image, np.ndarray):
        return image
    tensor = image.detach().cpu()
    if tensor.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    if tensor.ndim == 4:
        raise ImageError(f'image: a tensor {tuple(tensor.shape)} is a batch: predict(list(tensor)) takes its pictures')
    if tensor.ndim == 3 and tensor.shape[0] in CHANNELS:  # as torchvision has it
        tensor = tensor.permute(1, 2, 0)
    return tensor.numpy()


def to_pixels(values: np.ndarray) -> np.ndarray:
    """An array as a picture in RGB, uint8 [H, W, 3].

    Args:
        values: [H, W], or [H, W, C] of 1, 3 (RGB) or 4 channels, the last of which, transparency, is left out. Of
            uint8; of other integers from 0 to 255; of uint16, whose upper 8 bits are taken, as they are of a file; of
            floating point from 0 to 1, or where one is above 1, to 255; or of True (white) and False.

    Raises:
        ImageError: for any other.
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in CHANNELS or 0 in values.shape:
        first = values.ndim == 3 and values.shape[0] in CHANNELS
        hint = ': its channels come first, and have to be last: array.transpose(1, 2, 0)' if first else ''
        raise ImageError(
            f'image: expected an array [H, W, 3] in RGB, [H, W, 4] or [H, W], not {values.dtype} {values.shape}{hint}'
        )
    values = values[..., :3] if values.shape[2] > 1 else values[..., [0, 0, 0]]
    return np.ascontiguousarray(_as_bytes(values))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values
    if kind == 'b':
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return (values >> 8).astype(np.uint8)
    if kind not in 'iuf':
        raise ImageError(f'image: values of {values.dtype}: expected integers or floating point')
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # NaN, too
        raise ImageError(
            f'image: {values.dtype} from {low:.4g} to {high:.4g}: expected 0 to 255, or 0 to 1. The pipeline of the '
            'config normalises the picture itself.'
        )
    return np.rint(values * 255.0 if kind == 'f' and high <= 1 else values).astype(np.uint8)
