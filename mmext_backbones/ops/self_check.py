"""Compares each kernel in Triton with PyTorch's form at its first launch on a device, before its numbers are used.

A kernel may be wrong with a GPU, a driver or a version of Triton that nobody has tried. What is about to be launched
first runs on a small odd map with the same constants and type, and its results (of a forward pass the map, of a
backward pass every gradient) are compared with those of PyTorch's form on the CPU in float64. Where they differ, or the
kernel breaks the device, one warning says what to report, and PyTorch's form runs from then on for this operator, type
and device; by name (`backend='gpu'`) the operator raises instead. What fails before it runs, in the compiler or at the
launch, is not told here: the launch meets it too, see `triton_start`.

Verdicts are kept beside the kernels of `kernel_cache`, under the hash of all that they depend on: driver, GPU, torch,
Triton and the source of the kernels; but for a broken device, which the next process may find mended. The environment
variable MMEXT_SELF_CHECK=0 leaves the check out.

It runs in a thread of its own, which has neither the caller's autocast, gradients, modes and streams, nor its random
numbers; and not while CUDA records a graph. It needs no other kernels than those that are launched anyway: beyond their
compilation PyTorch's side takes up to some hundredths of a second each, once.
"""

import functools
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import kernel_cache
from .gpu_support import refuse, refused
from .triton_start import first_line, is_of_the_device, refuse_by_name

ENVIRONMENT = 'MMEXT_SELF_CHECK'
ADVICE = (
    'From now on PyTorch does its work, slower. Please report this line to the maintainers of mmext_backbones, with '
    'what `python -m mmext_backbones.doctor` says. MMEXT_SELF_CHECK=0 leaves the check out.'
)
DEVICES = ('cuda',)  # whose kernels are checked; on the CPU is Triton's interpreter
# of the largest element of a result. The operands of products and the results are rounded, to 2^-12 and 2^-9; sums of
# some hundred products
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2**-8, torch.bfloat16: 2**-5}
TF32 = 2**-7  # where float32 is multiplied as TF32

logger = logging.getLogger('mmext_backbones')
_lock = threading.Lock()
_verdicts: dict[Hashable, bool] = {}


class Launcher(NamedTuple):
    """One direction of an operator.

    Attributes:
        operator: as in `gpu_support.refuse`.
        kernel: launches its kernels; the first argument is a tensor of the device.
        in_torch: computes the same in PyTorch on any device, in float64 too.
        kind: from the arguments, what the kernels are compiled for; 'tf32' is in it where that is.
        sample: from the arguments, small ones for which the same kernels are compiled, on the CPU.
        results: names of what is returned.
    """

    operator: str
    kernel: Callable
    in_torch: Callable
    kind: Callable[..., tuple]
    sample: Callable[..., Sequence]
    results: Sequence[str]


def checked(launcher: Launcher) -> Callable:
    """What an operator runs: `kernel`, or `in_torch` where that was found wrong. The first call of a kind checks it."""
    kernel, kind = launcher.kernel, launcher.kind

    @functools.wraps(kernel)
    def run(*args):
        device = args[0].device
        if device.type not in DEVICES:
            return kernel(*args)
        key = launcher.operator, launcher.results, device, args[0].dtype, *kind(*args)
        right = _verdicts.get(key)
        if right is None:
            right = _verdict(launcher, key, args)
        if right:
            return kernel(*args)
        refuse_by_name(refused(launcher.operator, args[0].dtype, device))
        return launcher.in_torch(*args)

    return run


def compare(launcher: Launcher, device: torch.device, args: Sequence) -> str | None:
    """Compares the kernels that these arguments would take with PyTorch's form, whatever was found before.

    Args:
        launcher: the direction.
        device: where the kernels run.
        args: of the kernel; their shapes and types count.

    Returns:
        What differs, or None. What Triton, compiler and driver raise passes.
    """
    return _compare(launcher, device, args, 'tf32' in launcher.kind(*args))[0]


def _verdict(launcher: Launcher, key: tuple, args: Sequence) -> bool:
    """Whether the kernels of a kind are right, found once of the threads that ask."""
    device, dtype = args[0].device, args[0].dtype
    recorded = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if recorded or os.environ.get(ENVIRONMENT) == '0':
        return True
    with _lock:
        if key not in _verdicts:
            if refused(launcher.operator, dtype, device) is None:
                fault = _fault(launcher, key, args)
                if fault is not None and refuse(launcher.operator, dtype, device, fault):
                    logger.warning('%s %s', fault, ADVICE)
            _verdicts[key] = refused(launcher.operator, dtype, device) is None
        return _verdicts[key]


def _fault(launcher: Launcher, key: tuple, args: Sequence) -> str | None:
    """What is wrong with the kernels: as an earlier process found, or by the check; None for nothing."""
    device = args[0].device
    try:
        facts = _facts(launcher, device)
    except Exception as error:  # of the driver, or where the package has no sources
        logger.info('A kernel was not checked: %s', error)
        return None
    stem = f'self_check_{_hash(repr((facts, key[:2], key[3:])))}'
    kept = _read(stem)
    if kept is not None:
        return kept['fault']
    began = time.perf_counter()
    fault, lasts = _in_a_thread(lambda: _compare(launcher, device, args, 'tf32' in key))
    took = time.perf_counter() - began
    what = f'{launcher.operator} in {args[0].dtype} ({", ".join(launcher.results)}; {key[4:]})'
    if fault is not None:
        fault = f'A kernel in Triton is given up, {what}: {fault} [{facts}; found in {took:.1f} s].'
    else:
        logger.info('%s: checked in %.2f s', what, took)
    if lasts:
        _write(stem, {'fault': fault})
    return fault


def _compare(launcher: Launcher, device: torch.device, args: Sequence, tf32: bool) -> tuple[str | None, bool]:
    """What differs, or None; and whether another process would find the same."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)  # raises what went wrong before
    sample = launcher.sample(*args)
    expected = launcher.in_torch(*(x.double() if isinstance(x, Tensor) else x for x in sample))
    try:
        with torch.cuda.device_of(torch.empty(0, device=device)):
            actual = launcher.kernel(*(x.to(device) if isinstance(x, Tensor) else x for x in sample))
            actual = [x.cpu() for x in _tuple(actual)]
    except Exception as error:  # whatever compiler and driver raise
        if not is_of_the_device(error) or 'out of memory' in str(error):
            raise
        return f'it fails, {first_line(error)}', False
    for name, a, e in zip(launcher.results, actual, _tuple(expected), strict=True):
        if e.numel():
            tolerance = TF32 if tf32 else max(TOLERANCES[args[0].dtype], TOLERANCES[a.dtype])
            largest = e.abs().max()
            error = (a.double() - e).abs().max()
            if not error <= tolerance * largest:  # nor is NaN
                return (
                    f'{name} is off by {error / largest:.1e} of its largest element, {tolerance:.0e} is allowed',
                    True,
                )
    return None, True


def _tuple(results: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (results,) if isinstance(results, Tensor) else results


def _in_a_thread(function: Callable[[], tuple[str | None, bool]]) -> tuple[str | None, bool]:
    """What the function returns in a new thread; without an answer nothing is wrong."""
    results = []

    def run() -> None:
        try:
            results.append(function())
        except Exception as error:  # of what is not the kernel's: no memory, an earlier failure of the GPU
            logger.info('A kernel was not checked: %s', error)

    thread = threading.Thread(target=run, name='self_check')
    try:
        thread.start()
        thread.join()
    except RuntimeError as error:  # the system gives no more threads
        logger.info('A kernel was not checked: %s', error)
    return results[0] if results else (None, False)


# --------------------------------------------------------------------------------------------------------------------
# What a verdict depends on, and where it is kept


@functools.cache
def _source(path: Path) -> str:
    """Names the version of an operator's kernels."""
    files = [*sorted(path.parent.glob('gpu*.py')), Path(__file__)]
    return _hash(''.join(file.read_text(encoding='utf-8') for file in files))


def _facts(launcher: Launcher, device: torch.device) -> str:
    """GPU, driver, versions: one line for a report."""
    gpu = str(device)
    if device.type == 'cuda':
        capability = '.'.join(map(str, torch.cuda.get_device_capability(device)))
        gpu = f'{torch.cuda.get_device_name(device)} ({capability})'
    return f'{gpu}, driver {_driver()}, {_versions()}, kernels {_source(Path(launcher.kernel.__code__.co_filename))}'


@functools.cache
def _versions() -> str:
    try:
        import triton
    except ImportError:
        return f'torch {torch.__version__}, no Triton'
    return f'torch {torch.__version__}, Triton {triton.__version__}'


@functools.cache
def _driver() -> str:
    """The release of the driver, where the system tells it, else the version of CUDA that it is for."""
    for path in ('/proc/driver/nvidia/version', '/sys/module/amdgpu/version'):
        try:
            return next((word for word in Path(path).read_text().split() if word[0].isdigit()), 'unknown')
        except (OSError, ValueError):
            continue
    return str(torch._C._cuda_getDriverVersion()) if hasattr(torch._C, '_cuda_getDriverVersion') else 'unknown'


def _read(stem: str) -> dict | None:
    try:
        content = kernel_cache.read_kept(stem)
        kept = None if content is None else json.loads(content)
        return kept if isinstance(kept, dict) and 'fault' in kept else None
    except (OSError, RuntimeError, ValueError):
        return None


def _write(stem: str, verdict: dict) -> None:
    try:
        kernel_cache.keep(stem, json.dumps(verdict).encode())
    except (OSError, RuntimeError) as error:
        logger.info('The next process checks the kernels again: %s', error)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
