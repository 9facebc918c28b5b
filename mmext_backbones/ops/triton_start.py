"""What happens where Triton cannot start: one line that says what to install, and PyTorch's form of the operator.

To launch its first kernel Triton builds a small library with a C compiler and Python's headers, and writes it and the
kernel to a cache folder. Machines with a GPU may have none of these: containers without a compiler, clusters whose home
folder cannot be written. `cannot_start` asks beforehand; what comes up at a launch all the same, in a forward or a
backward pass, `or_in_torch` catches. A failure of the machine ends the use of Triton in this process; where Triton
refuses a kernel (one that does not fit the GPU), that of this kernel for the same types and sizes.

Where a person asks for the kernels by name (`backend='gpu'`, MMEXT_BACKEND=gpu) nothing takes their place: `call` has
the operator raise the reason, at the first launch as at every one after it, forward and backward.
"""

import errno
import functools
import subprocess
import sysconfig
import threading
from collections.abc import Callable, Hashable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from .caching import load_once
from .kernel_cache import logger
from .torch_versions import is_compiling

Results = TypeVar('Results')

DEVICES = ('cuda',)  # whose failures are caught; on the CPU is Triton's interpreter, where one is a mistake in a kernel

_LOCK = threading.Lock()
_ALL = 'all kernels'
_given_up: dict[Hashable, str] = {}  # `_ALL`, or a kind of launch -> why
_told: set[Hashable] = set()
_thread = threading.local()  # its `by_name` is True where nothing may take the place of a kernel


class Refused(RuntimeError):
    """What an operator refuses by itself; `or_in_torch` lets it pass."""


def cannot_start(device: torch.device) -> str | None:
    """Why Triton cannot launch kernels on a GPU, or None; also None for other devices. A reason is told once.

    A launch may fail later, so the answer may change to a reason.
    """
    if device.type != 'cuda':
        return None
    if _ALL not in _given_up and (reason := _start_failure(device)) is not None:
        _give_up(_ALL, reason, _ALL)
    return _given_up.get(_ALL)


def failures() -> list[str]:
    """The reasons for which kernels were given up in this process."""
    return list(_given_up.values())


def call(operator: Callable[..., Results], by_name: bool, *args) -> Results:
    """The results of an operator that `or_in_torch` made.

    Args:
        operator: of the dispatcher.
        by_name: whether a person asked for its kernel. In a compiled network PyTorch's form may run all the same, told
            in one line.
        args: its arguments.

    Raises:
        Refused: by name, where PyTorch's form would run.
    """
    if not by_name or is_compiling():
        return operator(*args)
    before = getattr(_thread, 'by_name', False)
    _thread.by_name = True
    try:
        return operator(*args)
    finally:
        _thread.by_name = before


def refuse_by_name(reason: str | None) -> None:
    """Raises Refused where a kernel that does not run was asked for by name."""
    if getattr(_thread, 'by_name', False):
        raise Refused(f"backend='gpu': {reason}")


def or_in_torch(kernel: Callable[..., Results], in_torch: Callable[..., Results]) -> Callable[..., Results]:
    """What an operator of Triton runs: `kernel`, or where that cannot start `in_torch`, which computes the same.

    The first of their arguments is a tensor. A lack of memory, and what went wrong on the device before, are raised as
    they are: the other form would meet them too.
    """
    name = f'{kernel.__module__}.{kernel.__name__}'

    @functools.wraps(kernel)
    def run(*args) -> Results:
        if args[0].device.type not in DEVICES:
            return kernel(*args)
        if _given_up and (reason := _given_up.get(_ALL) or _given_up.get(_kind(name, args))) is not None:
            refuse_by_name(reason)
            return in_torch(*args)
        try:
            return kernel(*args)
        except Refused:
            raise
        except Exception as error:  # whatever compiler, driver and file system raise
            if is_of_the_device(error):
                raise
            if type(error).__module__.partition('.')[0] == 'triton':
                reason = f'Triton refuses a kernel, please report it: {name}, {first_line(error)}'
                _give_up(_kind(name, args), reason, name)
            else:
                reason = _explain(error)
                _give_up(_ALL, reason, _ALL)
            refuse_by_name(reason)
        return in_torch(*args)

    return run


def _give_up(kind: Hashable, reason: str, topic: Hashable) -> None:
    """Keep the reason for a kind of launch, and tell it unless one of the same topic was told."""
    with _LOCK:
        _given_up.setdefault(kind, reason)
        first = topic not in _told
        _told.add(topic)
    if first:
        logger.warning('No kernels on the GPU: the operators run in PyTorch, slower. %s', reason)


@load_once
def no_triton() -> str | None:
    """Why Triton cannot be imported, or not compile the kernels; None where it can."""
    try:
        import triton
    except ImportError as error:
        return f'Triton cannot be imported: {error} (pip install triton, in the version that torch asks for)'
    if find_spec('triton.backends') is None:
        return f'Triton {triton.__version__} is too old: the kernels are for 3.0 and newer'
    return None


@load_once
def is_interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 was set when Triton was imported: kernels run as NumPy code, on any device."""
    import triton

    return not isinstance(triton.jit(_nothing), triton.JITFunction)


@functools.cache
def _start_failure(device: torch.device) -> str | None:
    """Why Triton cannot be imported, or not build what its launches need; None if it can."""
    try:
        if (problem := no_triton()) is not None:
            return problem
        if not is_interpreted():  # which needs nothing
            import triton

            triton.runtime.driver.active.get_current_target()
    except ImportError as error:
        return f'Triton cannot be imported: {error} (pip install triton, in the version that torch asks for)'
    except Exception as error:  # whatever the backend of the device raises
        return _explain(error)
    return None


def _nothing():
    pass


def _explain(error: Exception) -> str:
    return f'Triton cannot start: {_advice(error)} ({first_line(error)})'


def _advice(error: Exception) -> str:
    """What to do about a failure."""
    text = str(error)
    if 'libcuda' in text or 'ldconfig' in text:
        return "the library libcuda.so.1 of the GPU's driver is not found, set TRITON_LIBCUDA_PATH to its folder"
    if 'C compiler' in text or isinstance(error, FileNotFoundError):
        return 'install a C compiler (gcc or clang), or name one in the environment variable CC'
    if isinstance(error, subprocess.CalledProcessError):
        headers = Path(sysconfig.get_paths()['include'], 'Python.h')
        if not headers.is_file():
            return f'install the headers of Python (python3-dev or python3-devel), there is no {headers}'
        return 'the C compiler fails, name another one in the environment variable CC'
    if 'ptxas' in text.lower() or isinstance(error, ImportError):
        return 'install Triton anew, in the version that torch asks for'
    if isinstance(error, OSError):
        space = ' with free space' if error.errno in (errno.ENOSPC, errno.EDQUOT) else ''
        return f'set TRITON_CACHE_DIR to a folder that can be written{space}'
    if 'home' in text.lower():
        return 'set TRITON_CACHE_DIR to a folder that can be written'
    return 'do the versions of Triton, torch and the driver fit together?'


def first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), '')
    return f'{type(error).__name__}: {line[:200]}'


def is_of_the_device(error: Exception) -> bool:
    """Whether the GPU has no memory left, or a kernel before has failed on it."""
    text = str(error)
    signs = ('out of memory', 'CUDA error', 'HIP error', 'illegal memory access', 'device-side assert')
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(sign in text for sign in signs)


def _kind(name: str, args: Sequence[object]) -> Hashable:
    """A kernel, and what of its arguments it is compiled for."""
    return name, *(
        (x.device, x.dtype, x.shape[-1]) if isinstance(x, Tensor) else tuple(x) if isinstance(x, (list, tuple)) else x
        for x in args
    )
