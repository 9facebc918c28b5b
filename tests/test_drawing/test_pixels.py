"""Images of any number of bands and any type as pictures."""

import numpy as np
import pytest

from mmext_backbones.drawing.pixels import to_rgb


def test_three_channels_of_bytes_are_turned_over():
    bgr = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    rgb = to_rgb(bgr)
    assert np.array_equal(rgb, bgr[..., ::-1])
    assert not np.shares_memory(rgb, bgr)
    alpha = np.concatenate([bgr, bgr[..., :1]], axis=2)
    assert np.array_equal(to_rgb(alpha), bgr[..., ::-1])
    assert np.array_equal(to_rgb(bgr.astype(np.float32)), bgr[..., ::-1])


@pytest.mark.parametrize('shape', [(5, 4), (5, 4, 1), (5, 4, 2)])
def test_one_or_two_bands_are_grey(shape):
    pixels = np.linspace(0, 200, np.prod(shape)).reshape(shape).astype(np.uint8)
    rgb = to_rgb(pixels)
    assert rgb.shape == (5, 4, 3)
    assert all(np.array_equal(rgb[..., band], pixels.reshape(5, 4, -1)[..., 0]) for band in range(3))


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int16, np.float32, np.float64])
def test_many_bands_are_stretched(dtype):
    rng = np.random.default_rng(0)
    pixels = (rng.random((50, 40, 12)) * 90 + 7 * np.arange(12)).astype(dtype)
    rgb = to_rgb(pixels)
    assert (rgb.shape, rgb.dtype) == ((50, 40, 3), np.uint8)
    for band in range(3):
        assert (rgb[..., band].min(), rgb[..., band].max()) == (0, 255)
        order = np.argsort(pixels[..., band].ravel(), kind='stable')
        assert (np.diff(rgb[..., band].ravel()[order].astype(int)) >= 0).all()


def test_narrow_and_wide_ranges():
    reflectance = np.random.default_rng(0).random((20, 20, 3)).astype(np.float32)
    assert to_rgb(reflectance).max() == 255
    dark = np.random.default_rng(0).integers(0, 3000, (20, 20, 3)).astype(np.uint16)
    assert to_rgb(dark).max() == 255  # a shift by 8 bits would leave 11
    full = np.full((4, 4, 3), 0x8123, np.uint16)
    assert (to_rgb(full) == 0x81).all()


def test_what_is_not_finite_is_black():
    pixels = np.linspace(0, 1, 400).reshape(20, 20).astype(np.float32)
    pixels[0, 0], pixels[5, 5], pixels[9, 9] = np.nan, np.inf, -np.inf
    rgb = to_rgb(pixels)
    assert not rgb[[0, 5, 9], [0, 5, 9]].any()
    assert rgb.max() == 255
    assert not to_rgb(np.full((3, 3, 5), np.nan, np.float32)).any()
    assert to_rgb(np.full((3, 3), 0.5, np.float32)).shape == (3, 3, 3)
