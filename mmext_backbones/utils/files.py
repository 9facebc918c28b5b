"""Atomic file writes, locks, and full disks."""

import contextlib
import errno
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.logging import print_log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    'PARTIAL',
    'in_place',
    'is_full',
    'is_local',
    'locked',
    'move_into_place',
    'remove',
    'unless_full',
    'write_whole',
]

PARTIAL = '.partial'  # the end of the name of a file that is being written

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_local(folder: str | Path, backend_args: dict | None = None, client_args: dict | None = None) -> bool:
    """Whether mmengine writes to this folder as to a disk; what it writes elsewhere is its backend's business."""
    if client_args is not None:
        return client_args.get('backend') == 'disk'
    return isinstance(get_file_backend(str(folder), backend_args=backend_args), LocalBackend)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk, a quota or a limit on the size of files is used up."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextlib.contextmanager
def in_place(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when the block ends: beside it, with the same suffix.

    Who reads `path`, also after a kill or a power cut, finds what was there before or the new file, whole. If the block
    raises, nothing of the new one is left.
    """
    partial = path.with_name(f'{path.stem}.{os.getpid()}{PARTIAL}{path.suffix}')
    try:
        yield partial
        move_into_place(partial, path)
    finally:
        remove(partial)


def write_whole(path: Path, text: str) -> None:
    """`Path.write_text` in UTF-8, see `in_place`."""
    with in_place(path) as partial:
        partial.write_text(text, encoding='utf-8')


def move_into_place(partial: Path, path: Path) -> None:
    """Renames a file or a folder that is complete to what it is meant to be; on the disk before this returns."""
    for file in [partial, *partial.rglob('*')] if partial.is_dir() else [partial]:
        _sync(file)
    if path.is_dir():
        shutil.rmtree(path)  # no folder can be renamed onto another
    os.replace(partial, path)
    _sync(path.parent)


def remove(path: Path) -> None:
    """Removes a file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def unless_full(what: str) -> Callable[[Callable], Callable]:
    """Decorates a function that writes something a training can do without: on a full disk it warns, once.

    Args:
        what: What is not written then, for the warning.
    """

    def decorate(write: Callable) -> Callable:
        warned = False

        @functools.wraps(write)
        def written(*args: Any, **kwargs: Any) -> Any:
            nonlocal warned
            try:
                return write(*args, **kwargs)
            except OSError as error:
                if not is_full(error):
                    raise
                if not warned:
                    warned = True
                    print_log(f'{what}: not written ({error.strerror}). Training goes on.', 'current', logging.WARNING)

        return written

    return decorate


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time, of all that see the same disk; a process that dies lets go.

    Where the system or the disk has no such locks, nothing is held back.

    Args:
        path: A file for the lock, made if it is not there, and left empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a') as file:
        with contextlib.suppress(OSError):
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go
