"""Any image that a network takes, as a picture in RGB."""

import numpy as np

__all__ = ['to_rgb']


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """A copy in RGB, uint8 [H, W, 3], of what a pipeline has read.

    Three or four channels are BGR, the order of OpenCV, the fourth is alpha. Of more, the first three are shown as red,
    green and blue. Values from 0 to 255 stay as they are, 16 bits that are used to the upper half lose their lower
    byte, and all others, and the bands of more than four channels, are stretched from their darkest 2 % to their
    brightest 2 %.

    Args:
        pixels: [H, W] or [H, W, C] of any number type.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    channels = pixels.shape[2]
    if channels > 4:
        return np.stack([_stretched(pixels[..., band]) for band in range(3)], axis=2)
    pixels = pixels[..., [0, 0, 0]] if channels < 3 else pixels[..., 2::-1]
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    low, high = np.nanmin(pixels), np.nanmax(pixels)
    if low >= 0 and 1 < high <= 255:
        return np.ascontiguousarray(np.nan_to_num(pixels).astype(np.uint8))
    if pixels.dtype == np.uint16 and high >= 1 << 15:
        return np.ascontiguousarray((pixels >> 8).astype(np.uint8))
    return _stretched(pixels)


def _stretched(values: np.ndarray) -> np.ndarray:
    """uint8 of the same shape: 0 at the 2nd percentile, 255 at the 98th; what is not finite is black."""
    values = values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(values[finite], (2, 98))
    scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return (255 * np.where(finite, scaled, 0).clip(0, 1)).round().astype(np.uint8)
