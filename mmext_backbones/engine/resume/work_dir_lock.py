"""One training at a time in a work dir: a second one would mix its files with those of the first."""

import contextlib
import datetime
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from mmengine.dist import is_main_process

from ...utils.console import is_first_process, say
from ...utils.errors import UserError
from ...utils.files import is_full

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ['LOCK', 'is_left_over', 'lock_work_dir']

LOCK = 'training.lock'  # the file in the work dir that a training locks, and that names it
OLD = 3600  # seconds without a change after which nobody writes a file any more


@dataclass
class _Held:
    file: TextIO
    before: str  # the note of the training that held it before, and has ended
    used: bool = False  # whether a training began, and was not refused for its config or its checkpoint


_held: dict[Path, _Held] = {}  # by resolved work dirs, in this process


@contextlib.contextmanager
def lock_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Inside, no other training has this work dir; the system lets go of it when the process ends, however it ends.

    The first process of a distributed training holds it for all. A second block inside the first is where the training
    begins; without one, the note in the lock stays as it was. Where a file system has no locks, a warning says so.

    Args:
        work_dir: It is made if it is not there.

    Raises:
        UserError: if another training has it, or it cannot be written.
    """
    folder = Path(work_dir).resolve()
    if folder in _held:
        _held[folder].used = True
    if folder in _held or not (is_first_process() and is_main_process()):
        yield
        return
    held = _take(folder, str(work_dir))
    if held is not None:
        _held[folder] = held
    try:
        yield
    finally:
        held = _held.pop(folder, None)
        if held is not None:
            with contextlib.suppress(OSError):  # of a full disk
                if not held.used and held.before:
                    _write(held.file, held.before)
                held.file.close()


def is_left_over(path: Path) -> bool:
    """Whether a file that was not written to its end is nobody's any more, in a work dir that this process has.

    It is if the training before, which noted itself in the lock, has ended. Where none did, one may run that knows no
    lock, and a file that has just been changed is left alone.
    """
    held = _held.get(path.resolve().parent)
    try:
        return (held is not None and bool(held.before)) or time.time() - path.stat().st_mtime > OLD
    except OSError:  # gone
        return False


def _take(folder: Path, name: str) -> _Held | None:
    """The lock of a folder, with a note of this process; None where there are no locks."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open('a+', encoding='utf-8', errors='replace')
    except OSError as error:
        if is_full(error):
            return None
        raise UserError(
            f'work dir {name!r} cannot be written: {error.strerror}. Name another one with --work-dir.'
        ) from error
    file.seek(0)
    before = file.read(300).strip()
    try:
        if fcntl is None:
            raise OSError('this system has none')
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f'work dir {name!r}: another training runs there, {before or "which has not said its process yet"}. Wait '
            'for its end, stop it (its checkpoint is kept), or name another folder with --work-dir.'
        ) from None
    except OSError as error:
        file.close()
        say(f'No locks in {name} ({error}): two trainings there at once would not be noticed.')
        return None
    with contextlib.suppress(OSError):
        now = datetime.datetime.now().astimezone().isoformat(sep=' ', timespec='seconds')
        _write(file, f'process {os.getpid()} on {socket.gethostname()} since {now}')
    return _Held(file, before)


def _write(file: TextIO, note: str) -> None:
    file.truncate(0)
    file.write(f'{note}\n')
    file.flush()


def _forget() -> None:
    """A forked process does not keep the lock from those who come after the training."""
    while _held:
        with contextlib.suppress(OSError):
            _held.popitem()[1].file.close()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget)
