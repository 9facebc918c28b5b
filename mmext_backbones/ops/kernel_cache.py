"""Where compiled kernels are kept between processes, and what is checked before one is loaded.

Loading a library runs it, so one is taken from the cache only if it is this user's own and whole: the folder and the
file belong to the user and nobody else may write there, and the content has the hash that its name says. A file that
was cut, damaged or exchanged is removed, and the kernel is compiled again. What the compiler made is loaded once before
it gets its name in the cache, and is on the disk before that.

Where no such folder can be had (a home folder that is not known or cannot be written, a full disk), the kernels are
compiled in a private temporary folder, by each process anew.
"""

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

FLAGS = ('-std=gnu11', '-O3', '-march=native', '-mprefer-vector-width=512', '-fopenmp', '-fPIC')
PORTABLE_FLAGS = ('-std=gnu11', '-O3', '-fopenmp', '-fPIC')  # for compilers that do not know the others
ASKED = 30  # seconds a compiler has to tell its version
LONGEST = 120  # seconds it has for a kernel, which takes about one
PATIENCE = 5  # seconds after which a person is told what is waited for

logger = logging.getLogger('mmext_backbones')
_told: set[str] = set()
_telling = threading.Lock()
_hanging: set[tuple[str, ...]] = set()  # compilers that are not called again


def open_library(source: Path, real: str, names: Sequence[str], defines: tuple[str, ...] = ()) -> ctypes.CDLL:
    """The library of a C file, compiled unless the cache has it.

    Args:
        source: The file.
        real: What REAL is in it: ``'float'`` or ``'double'``.
        names: The functions that it must have.
        defines: Further flags of the compiler, which define numbers.

    Raises:
        OSError: if it cannot be loaded.
        RuntimeError: without a C compiler, or if that fails or does not end.
    """
    compiler = _compiler()
    try:
        return _with(compiler, FLAGS + defines, source, real, names)
    except RuntimeError:
        if compiler in _hanging:
            raise
        return _with(compiler, PORTABLE_FLAGS + defines, source, real, names)


def warn_once(message: str, *values: object) -> None:
    """A warning the first time in this process, and for the log of details after that."""
    with _telling:
        level = logging.INFO if message in _told else logging.WARNING
        _told.add(message)
    logger.log(level, message, *values)


def read_kept(stem: str) -> bytes | None:
    """What `keep` wrote under a name: by any process of this user, and unchanged since. None without that.

    Raises:
        OSError: if there is no folder, or the file cannot be read.
        RuntimeError: if the home folder of the user is not known.
    """
    path = _sound(_private_folder(), f'{stem}_*.kept')
    return None if path is None else path.read_bytes()


def keep(stem: str, content: bytes) -> None:
    """Writes a small file for `read_kept`, whole or not at all. Raises as that."""
    folder = _private_folder()
    with tempfile.TemporaryDirectory(prefix='mmext_backbones_', dir=folder) as scratch:
        made = Path(scratch, 'kept')
        made.write_bytes(content)
        _keep(made, folder / f'{stem}_{_hash(content)}.kept')


def _with(
    compiler: tuple[str, ...], flags: tuple[str, ...], source: Path, real: str, names: Sequence[str]
) -> ctypes.CDLL:
    text = source.read_text(encoding='utf-8')
    parts = (text, compiler, _version(compiler), flags, real, platform.machine(), _processor())
    stem = f'{source.parent.name}_{source.stem}_{real}_{_hash(repr(parts).encode())[:16]}'
    command = (*compiler, *flags, f'-DREAL={real}')
    try:
        folder = _private_folder()
        if (path := _sound(folder, f'{stem}_*.so')) is not None:
            return ctypes.CDLL(str(path))
        with _compiled(command, source, names, compiler, folder) as (made, library):
            _keep(made, folder / f'{stem}_{_hash(made.read_bytes())}.so')
            return library
    except (OSError, RuntimeError) as error:
        if isinstance(error, _CompilerError):
            raise
        warn_once('Kernels are compiled by each process anew, which takes some seconds: %s', error)
    with _compiled(command, source, names, compiler) as (_, library):
        return library  # the system keeps what is loaded, without its name


# --------------------------------------------------------------------------------------------------------------------
# The folder and the files


def _private_folder() -> Path:
    """The folder of the cache, which nobody else can write.

    Raises:
        OSError: if there is none, or it cannot be made so.
        RuntimeError: if the home folder of the user is not known.
    """
    root = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache')
    if not root.is_absolute():  # as the standard of that variable says: what is relative counts for nothing
        root = Path('~/.cache').expanduser()
    folder = (root / 'mmext_backbones').resolve()
    for each in reversed([each for each in (folder, *folder.parents) if not each.exists()]):
        each.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if not _is_own(status):
        raise OSError(f'{folder} belongs to another user')
    for above in folder.parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise OSError(f'everybody can exchange {folder}: {above} may be written by all')
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        folder.chmod(0o700)
    return folder


def _sound(folder: Path, pattern: str) -> Path | None:
    """The first sound file of that name; those before it are removed."""
    for path in sorted(folder.glob(pattern)):
        if _is_sound(path):
            return path
        path.unlink(missing_ok=True)
    return None


def _is_sound(path: Path) -> bool:
    """Whether this is a file of this user that nobody else may write or has a link to, with the content it had."""
    status = path.lstat()
    own = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and _is_own(status)
    if not own or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return False
    return _hash(path.read_bytes()) == path.stem.rpartition('_')[2]


def _is_own(status: os.stat_result) -> bool:
    return not hasattr(os, 'geteuid') or status.st_uid == os.geteuid()  # Windows has no such numbers


def _keep(made: Path, path: Path) -> None:
    """Gives a library its name in the cache: whole and on the disk, whenever the power fails."""
    made.chmod(0o600)
    _sync(made)
    os.replace(made, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --------------------------------------------------------------------------------------------------------------------
# The compiler


class _CompilerError(RuntimeError):
    """What the compiler does or says, which another folder does not change."""


def _compiler() -> tuple[str, ...]:
    """The command of ``CC``, which may have arguments (``ccache gcc``), or ``cc``."""
    named = os.environ.get('CC') or ''
    try:
        command = tuple(shlex.split(named)) or ('cc',)
    except ValueError as error:
        raise _CompilerError(f'no C compiler: CC={named!r} is no command ({error})') from error
    if shutil.which(command[0]) is None:
        raise _CompilerError(f'no C compiler: {command[0]!r} is not on the PATH')
    return command


@contextlib.contextmanager
def _compiled(
    command: Sequence[str], source: Path, names: Sequence[str], compiler: tuple[str, ...], folder: Path | None = None
) -> Iterator[tuple[Path, ctypes.CDLL]]:
    """A library in a folder that goes when the block ends; it has been loaded, and has its functions."""
    with tempfile.TemporaryDirectory(prefix='mmext_backbones_', dir=folder) as scratch:
        objects, made = Path(scratch, 'kernel.o'), Path(scratch, 'kernel.so')
        _run(compiler, [*command, '-c', str(source), '-o', str(objects)], LONGEST)
        _run(compiler, [*compiler, '-shared', str(objects), '-o', str(made)], LONGEST)
        # OpenMP is not linked: PyTorch has its own copy of the runtime open for all, and two would fight over the cores
        try:
            library = ctypes.CDLL(str(made))
        except OSError as error:
            if made.is_file() and made.read_bytes()[:4] == b'\x7fELF' and folder is not None:
                raise  # where nothing may be run
            raise _CompilerError(f'{compiler[0]} makes no library that can be loaded: {error}') from error
        missing = [name for name in names if not hasattr(library, name)]
        if missing:
            raise _CompilerError(f'{compiler[0]} makes a library without {missing[0]}')
        yield made, library


@functools.lru_cache(maxsize=8)
def _version(compiler: tuple[str, ...]) -> str:
    return _run(compiler, [*compiler, '--version'], ASKED)


def _run(compiler: tuple[str, ...], command: Sequence[str], limit: float) -> str:
    """What a command prints. It is told of after `PATIENCE` seconds, and ended with all it started after `limit`."""
    if compiler in _hanging:
        raise _CompilerError(f'{shlex.join(compiler)} did not end before')
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    try:
        process = subprocess.Popen(command, **pipes, errors='replace', start_new_session=True)
    except OSError as error:
        raise _CompilerError(f'{shlex.join(command[:2])} ... cannot be run: {error}') from error
    try:
        out, said = _outcome(process, limit)
    except subprocess.TimeoutExpired as error:
        _hanging.add(compiler)
        raise _CompilerError(f'{shlex.join(command[:2])} ... did not end within {limit:g} s') from error
    finally:
        if process.poll() is None:
            _end(process)
    if process.returncode:
        first = next(iter(said.strip().splitlines()), 'no message')
        raise _CompilerError(f'{shlex.join(command[:2])} ... failed: {first}')
    return out


def _outcome(process: subprocess.Popen, limit: float) -> tuple[str, str]:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=min(PATIENCE, limit))
    warn_once('Compiling the CPU kernels, once on this machine: at most %g s each ...', LONGEST)
    return process.communicate(timeout=max(limit - PATIENCE, 0))


def _end(process: subprocess.Popen) -> None:
    """Kills a compiler and what it has started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        pipe.close()


def _processor() -> str:
    """What tells processors apart that share a home folder."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
