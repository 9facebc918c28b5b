"""C kernels for the CPU, compiled at their first use where a C compiler is at hand.

A kernel is one plain C file in the folder of its operator, without a header of Python or PyTorch: compiling takes about
a second, once per machine; nothing is compiled at install, and every operator has another form that needs no compiler.
The library is kept in the user's cache folder under the hash of all that went into it (source, compiler, flags,
processor).
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

FLAGS = ('-std=gnu11', '-O3', '-march=native', '-mprefer-vector-width=512', '-fopenmp', '-fPIC')
PORTABLE_FLAGS = ('-std=gnu11', '-O3', '-fopenmp', '-fPIC')  # for compilers that do not know the others
REALS = {torch.float32: 'float', torch.float64: 'double'}

logger = logging.getLogger('mmext_backbones')
KERNELS: list['Kernels'] = []  # every one of the package, in the order of import


class Kernels:
    """The functions of one C file, in float32 and float64; they return nothing.

    Args:
        source: the file. It computes in the type REAL, which is defined when it is compiled.
        shape: structure whose address every function takes first.
        functions: for each function the types of its further arguments.
    """

    def __init__(self, source: Path, shape: type[ctypes.Structure], functions: dict[str, Sequence[type]]) -> None:
        self.source = source
        self.name = f'{source.parent.name}/{source.name}'
        self.shape = shape
        self.functions = functions
        KERNELS.append(self)
        self.library = functools.cache(self._library)
        self.why_not = functools.cache(self._why_not)

    def __getitem__(self, dtype: torch.dtype) -> ctypes.CDLL:
        return self.library(REALS[dtype])

    def _why_not(self) -> str | None:
        """Why the kernels cannot run here, or None. The first call on a machine compiles them."""
        try:
            for real in REALS.values():
                self.library(real)
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            logger.info('The kernels of %s cannot be used: %s', self.name, error)
            return str(error)
        return None

    def _library(self, real: str) -> ctypes.CDLL:
        compiler = os.environ.get('CC') or 'cc'
        if shutil.which(compiler) is None:
            raise RuntimeError(f'no C compiler: {compiler!r} is not on the PATH')
        try:
            path = _build(self.source, compiler, FLAGS, real)
        except RuntimeError:
            path = _build(self.source, compiler, PORTABLE_FLAGS, real)
        # OpenMP is not linked: PyTorch has its own copy of the runtime open for all, and two would fight over the cores
        library = ctypes.CDLL(str(path))
        for name, types in self.functions.items():
            function = getattr(library, name)
            function.argtypes = [ctypes.POINTER(self.shape), *types]
            function.restype = None
        return library


def pointers(*tensors: Tensor | None) -> list[int | None]:
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


def token_rows(x: Tensor) -> Tensor:
    """[B, H, W, C] as [tokens, C] with dense channels, copied only if need be.

    Its first stride is the distance between tokens, which the strides of `x` may not tell: those of axes of size 1 are
    anything.
    """
    rows = x.reshape(-1, x.shape[3])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _build(source: Path, compiler: str, flags: tuple[str, ...], real: str) -> Path:
    """The path of the library, compiled unless it is there."""
    parts = (source.read_text(), _run(compiler, '--version'), flags, real, platform.machine(), _processor())
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    folder = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'mmext_backbones'
    path = folder / f'{source.parent.name}_{source.stem}_{real}_{key}.so'
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # then moved: another process never sees half a file
        objects, made = Path(scratch, 'kernel.o'), Path(scratch, 'kernel.so')
        _run(compiler, *flags, f'-DREAL={real}', '-c', str(source), '-o', str(objects))
        _run(compiler, '-shared', str(objects), '-o', str(made))
        os.replace(made, path)
    return path


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ['no message']
        raise RuntimeError(f'{" ".join(command[:2])} ... failed: {said[0]}')
    return done.stdout


def _processor() -> str:
    """What tells processors apart that share a home folder."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), platform.processor())
