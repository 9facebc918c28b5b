"""Checks image files, without decoding them where that is enough."""

import os
import stat

import numpy as np
from PIL import ExifTags, Image

from .kinds import Fault

__all__ = ['file_fault', 'image_notes', 'map_fault', 'unreadable']

TAIL = 4096  # bytes; what cameras and editors append to a file is rarely longer


def file_fault(path: str) -> Fault | None:
    """What keeps a file from being read, as far as its entry on the disk and its two ends tell; None for nothing.

    Costs a look at the entry and one small read. A JPEG that was cut is half grey for older OpenCV, without an error.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            return Fault('no file', path, 'is a folder' if stat.S_ISDIR(status.st_mode) else 'is no ordinary file')
        if status.st_size == 0:
            return Fault('empty', path, 'is an empty file')
        with open(path, 'rb') as file:
            head = file.read(16)
            file.seek(max(0, status.st_size - TAIL))
            tail = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return Fault('missing', path, 'the data set lists it, but there is no such file')
    except (OSError, ValueError) as error:  # no permission, a loop of links, a name that cannot be
        return Fault('no file', path, f'cannot be opened: {getattr(error, "strerror", None) or error}')
    ends = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG\r\n': b'IEND'}
    for start, end in ends.items():
        if head.startswith(start) and end not in tail:
            fault = unreadable(path)
            return fault if fault is not None and fault.kind == 'truncated' else None
    return None


def unreadable(path: str) -> Fault | None:
    """Decodes an image with Pillow, which says why it cannot; None if it can, or knows the format no better.

    A picture of more pixels than Pillow takes without a question is left to the config's own decoder.
    """
    try:
        with Image.open(path) as image:
            if image.format == 'EPS':  # a program, which Pillow hands to Ghostscript
                return Fault('unreadable', path, 'cannot be read: it is PostScript and no image')
            image.load()
    except Image.DecompressionBombError as error:
        return Fault('unreadable', path, f'cannot be read: {error}')
    except Exception as error:  # decoders raise anything
        reason = str(error) or type(error).__name__
        if 'cannot identify' in reason:
            return Fault('unreadable', path, 'cannot be read: it is damaged or no image')
        return Fault('truncated', path, f'cannot be read, it is cut short or damaged: {reason}')
    return None


def image_notes(path: str) -> list[Fault]:
    """What is unusual about an image that can be read, from its header."""
    try:
        with open(path, 'rb') as file:
            head = file.read(26)
        with Image.open(path) as image:
            mode, orientation = image.mode, image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a format Pillow does not know, or a header that is not in order
        return []
    deep = mode.startswith('I') or (head.startswith(b'\x89PNG\r\n') and head[24] == 16)
    kinds = {
        'grey': mode in ('1', 'L', 'LA'),
        'palette': mode in ('P', 'PA'),
        '16-bit': deep,
        'alpha': mode in ('RGBA', 'LA', 'PA', 'La', 'RGBa'),
        'CMYK': mode == 'CMYK',
        'EXIF rotated': orientation in range(2, 9),
    }
    return [Fault(kind, path, f'{kind}, mode {mode}') for kind, there in kinds.items() if there]


def map_fault(path: str) -> Fault | None:
    """A map of labels with more than 8 bits, of which mmseg would keep the lower 8; None if all are below 256."""
    try:
        with Image.open(path) as image:
            if image.mode in ('1', 'L', 'P'):
                return None
            if not image.mode.startswith(('I', 'F')):
                return Fault('map format', path, f'a map of labels has one channel, this one is {image.mode}')
            values = np.asarray(image)
    except Exception:  # told by what reads it
        return None
    if image.mode == 'F' or values.min() < 0 or values.max() > 255:
        return Fault('map values', path, f'labels up to {values.max()}, and mmseg reads 8 bits')
    return None
