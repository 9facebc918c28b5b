"""C kernels for the CPU, compiled at their first use where a C compiler is at hand.

A kernel is one plain C file in the folder of its operator, without a header of Python or PyTorch: compiling takes about
a second, once per machine; nothing is compiled at install, and every operator has another form that needs no compiler.
The library is kept in the user's cache folder under the hash of all that went into it (source, compiler, flags,
processor), see `kernel_cache`.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .caching import load_once
from .kernel_cache import open_library, warn_once

REALS = {torch.float32: 'float', torch.float64: 'double'}

KERNELS: list['Kernels'] = []  # every one of the package, in the order of import


class Kernels:
    """The functions of one C file, in float32 and float64; they return nothing.

    Args:
        source: the file. It computes in the type REAL, which is defined when it is compiled.
        shape: structure whose address every function takes first.
        functions: for each function the types of its further arguments.
        **constants: numbers that the caller shares with the file, which are defined when it is compiled.
    """

    def __init__(
        self,
        source: Path,
        shape: type[ctypes.Structure],
        functions: dict[str, Sequence[type]],
        **constants: float,
    ) -> None:
        self.source = source
        self.name = f'{source.parent.name}/{source.name}'
        self.shape = shape
        self.functions = functions
        self.defines = tuple(f'-D{name}=({value})' for name, value in constants.items())
        KERNELS.append(self)
        self.library = load_once(self._library)
        self.why_not = load_once(self._why_not)

    def __getitem__(self, dtype: torch.dtype) -> ctypes.CDLL:
        return self.library(REALS[dtype])

    def _why_not(self) -> str | None:
        """Why the kernels cannot run here, or None. The first call on a machine compiles them."""
        try:
            for real in REALS.values():
                self.library(real)
        except (OSError, RuntimeError) as error:
            warn_once('No C kernels: the operators run in PyTorch, slower on a CPU. %s: %s', self.name, error)
            return str(error)
        return None

    def _library(self, real: str) -> ctypes.CDLL:
        library = open_library(self.source, real, list(self.functions), self.defines)
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
