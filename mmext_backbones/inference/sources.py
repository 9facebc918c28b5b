"""Expands files, folders and patterns to the pictures and videos they name."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

from ..utils.errors import UserError, did_you_mean
from ..utils.files import unique_names

__all__ = ['IMAGE_SUFFIXES', 'VIDEO_SUFFIXES', 'Source', 'find_images', 'find_videos', 'read_names']

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp', '.jp2')
VIDEO_SUFFIXES = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.wmv')


class Source(NamedTuple):
    """A file and the name of what becomes of it: a path without a suffix, of no other source of the run."""

    path: Path
    name: str


def read_names(inputs: Sequence[str], stream: TextIO) -> list[str]:
    """The inputs, with the lines of a stream (or what lies between its zeros, as of ``find -print0``) in place of a -.

    Raises:
        UserError: if there are none.
    """
    if '-' not in inputs:
        return list(inputs)
    text = stream.read()
    names = [name for name in text.split('\0' if '\0' in text else '\n') if name.strip()]
    if not names:
        raise UserError('-: expected the names of files on the standard input, one a line, and there is none.')
    at = list(inputs).index('-')
    return [*inputs[:at], *(name.removesuffix('\r') for name in names), *(one for one in inputs[at:] if one != '-')]


def find_images(inputs: Sequence[str], without: Path) -> list[Source]:
    """The pictures that are meant, each once, those of a folder in the order of their names.

    Args:
        inputs: Files, whatever their suffix; folders, whose pictures are found by suffix, also in folders inside; and
            patterns such as ``'photos/**/*.jpg'``, where no shell has resolved them.
        without: A folder whose files are not meant: where results go.

    Raises:
        UserError: if a file or folder is not there, a pattern or folder has no picture, or a file is a video.
    """
    found = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            files = [file for file in path.rglob('*') if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
            files = [file for file in files if not any(part.startswith('.') for part in file.relative_to(path).parts)]
            files = [(file, file.relative_to(path)) for file in sorted(files) if not _inside(file, without)]
            if not files:
                raise UserError(f'folder {text!r} has no pictures ({", ".join(IMAGE_SUFFIXES)}).')
        elif glob.has_magic(text) and not os.path.lexists(text):
            files = [(Path(file), Path(file).name) for file in sorted(glob.glob(text, recursive=True))]
            files = [(file, name) for file, name in files if file.is_file() and not _inside(file, without)]
            if not files:
                raise UserError(f'pattern {text!r}: there is no such file.')
        else:
            files = [(_existing(path, 'image'), path.name)]
        found += files
    for file, _ in found:
        if file.suffix.lower() in VIDEO_SUFFIXES:
            raise UserError(f'{str(file)!r} is a video: add --video.')
    return _named(found)


def find_videos(inputs: Sequence[str]) -> list[Source]:
    """The videos that are meant.

    Raises:
        UserError: if one is not there, or is a folder.
    """
    for text in inputs:
        if Path(text).is_dir():
            raise UserError(f'--video: {text!r} is a folder, expected video files.')
    return _named([(_existing(Path(text), 'video'), Path(text).name) for text in inputs])


def _existing(path: Path, what: str) -> Path:
    if not path.exists():
        known = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f'{what} {str(path)!r}: there is no such file.{did_you_mean(str(path), known)}')
    return path


def _inside(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _named(files: Sequence[tuple[Path, str | Path]]) -> list[Source]:
    """Sources with the names of their files, each file once; later ones of the same name are numbered."""
    first: dict[Path, tuple[Path, str]] = {}
    for path, relative in files:
        first.setdefault(path.resolve(), (path, Path(relative).with_suffix('').as_posix()))
    names = unique_names(name for _, name in first.values())
    return [Source(path, name) for (path, _), name in zip(first.values(), names, strict=True)]
