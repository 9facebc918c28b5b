"""The pictures of the page: uploads, and drawn examples."""

import itertools
from collections.abc import Container
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..datasets.shapes.scenes import render_scene
from ..utils.errors import UserError

__all__ = ['LONGEST', 'draw_examples', 'read_picture']

LONGEST = 1600  # pixels, longer edge; larger pictures are shrunk: no test pipeline of ours looks at more
MOST_PIXELS = 50_000_000  # of what is decoded; of a JPEG that is a fraction of what it has
EXAMPLE_SIZE = 384
# what Pillow decodes by itself: others (EPS) are handed to programs
FORMATS = ('JPEG', 'JPEG2000', 'PNG', 'WEBP', 'AVIF', 'BMP', 'GIF', 'TIFF', 'PPM')


def read_picture(path: str | Path) -> np.ndarray:
    """A picture as a camera, a phone or a drawing program has saved it, RGB, [H, W, 3], uint8.

    It is turned as its EXIF data says, put on white where it is transparent, and shrunk to `LONGEST`.

    Raises:
        UserError: if it cannot be read, or is too large.
    """
    try:
        with Image.open(path, formats=[name for name in FORMATS if name in _known_formats()]) as image:
            image.draft('RGB', (LONGEST, LONGEST))  # JPEG only: decodes at a fraction of the size
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            pixels = _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(
            f'the picture has too many pixels: at most {MOST_PIXELS / 1e6:.0f} million are decoded. Shrink it first.'
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = 'it is of no kind that is known, or damaged' if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f'the picture cannot be read: {reason}. Try a JPEG or a PNG.') from error
    factor = LONGEST / max(pixels.shape[:2])
    if factor < 1:
        size = [max(1, round(edge * factor)) for edge in pixels.shape[1::-1]]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return pixels


def _known_formats() -> Container[str]:
    Image.init()
    return Image.OPEN


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith('I;16'):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if 'A' in image.getbands() or 'transparency' in image.info:
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return np.array(image.convert('RGB'))


def draw_examples(folder: str | Path, count: int = 5, seed: int = 2026) -> list[Path]:
    """Writes pictures as of the Shapes data, but none of them, with two shapes or more; returns their paths.

    Args:
        folder: For them; it must exist.
        count: How many.
        seed: Another seed draws other pictures.
    """
    scenes = (render_scene(np.random.default_rng([seed, number]), EXAMPLE_SIZE) for number in itertools.count())
    paths = []
    for scene in itertools.islice((scene for scene in scenes if len(scene.labels) > 1), count):
        paths.append(Path(folder, f'shapes_{len(paths) + 1}.png'))
        Image.fromarray(scene.image).save(paths[-1])
    return paths
