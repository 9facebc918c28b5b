"""Atomic file writes, locks, and full disks."""

import contextlib
import errno
import functools
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.logging import print_log

from .errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = [
    'PARTIAL',
    'check_place',
    'in_place',
    'is_full',
    'is_local',
    'keep_inputs',
    'locked',
    'move_into_place',
    'read_path',
    'remove',
    'unique_names',
    'unless_full',
    'write_whole',
]

PARTIAL = '.partial'  # the end of the name of a file that is being written

LONGEST_PATH = 4096  # bytes, what systems take
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
    """`Path.write_text` in UTF-8, see `in_place`. Bytes of a path that are no UTF-8 stay what they are."""
    with in_place(path) as partial:
        partial.write_text(text, encoding='utf-8', errors='surrogateescape')


def read_path(note: Path) -> str:
    """The path or address that a small file holds; empty if there is no such file, or it holds anything else."""
    if not note.is_file():
        return ''
    with note.open('rb') as file:
        content = file.read(LONGEST_PATH + 1).strip()
    if len(content) > LONGEST_PATH or any(byte < 32 for byte in content):
        return ''
    return os.fsdecode(content)


def move_into_place(partial: Path, path: Path) -> None:
    """Renames a file or a folder that is complete to what it is meant to be; on the disk before this returns."""
    for file in [partial, *partial.rglob('*')] if partial.is_dir() else [partial]:
        _sync(file)
    if partial.is_dir() and path.is_dir():
        shutil.rmtree(path)  # no folder can be renamed onto another
    os.replace(partial, path)
    _sync(path.parent)


def remove(path: Path) -> None:
    """Removes a file or a folder, or nothing."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_place(option: str, path: Path) -> None:
    """Looks whether a file can be written, before what it will hold is computed; its folder is made.

    Args:
        option: That names the file, with its value, for the message.
        path: The file.

    Raises:
        UserError: if there is a folder of its name, or no file can be made beside it.
    """
    if path.is_dir():
        raise UserError(f'{option}: there is a folder of this name. Name a file.')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = path.with_name(f'{path.name}.trial')
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f'{option}: {path.parent} is no folder that can be written ({error.strerror}).') from error


def keep_inputs(option: str, targets: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Looks whether what is to be written would replace what it is made from, also under another name.

    Args:
        option: That names what is written, with its value, for the message.
        targets: Files that will be written.
        inputs: Files that are read; those that are not there, and addresses, are passed over.

    Raises:
        UserError: if one of the targets is one of the inputs.
    """
    there = {_identity(target): target for target in targets if os.path.exists(target)}
    for file in inputs if there else ():
        if os.path.exists(file) and _identity(file) in there:
            raise UserError(
                f'{option}: {str(there[_identity(file)])!r} is read here, and would be replaced by what is written. '
                'Name another place.'
            )


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def unique_names(names: Iterable[str], taken: set[str] | None = None) -> list[str]:
    """The names, those numbered that were there before: some disks do not tell A from a.

    Args:
        names: Without suffixes.
        taken: Names that are given away, in small letters; those that are given here are added.
    """
    unique, taken = [], set() if taken is None else taken
    for base in names:
        name, number = base, 2
        while name.lower() in taken:
            name, number = f'{base}_{number}', number + 1
        taken.add(name.lower())
        unique.append(name)
    return unique


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
