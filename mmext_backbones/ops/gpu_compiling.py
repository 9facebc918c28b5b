"""Launches kernels in Triton, and before the first launch compiles those that will follow it, side by side.

Triton compiles a kernel when it is launched first, each while the program waits, in silence: seconds for every kernel,
once for a GPU and a version of Triton, which keeps them on the disk. What is here saves time and tells what is waited
for; where it fails the launches compile by themselves.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .gpu_support import is_interpreted
from .kernel_cache import warn_once
from .torch_versions import is_compiling

PATIENCE = 2  # seconds after which a person is told what is waited for

_seen: set[Hashable] = set()
_lock = threading.Lock()
_thread = threading.local()  # its `ahead` is True where launches only compile


def launch(
    kernel: Any, grid: tuple[int, ...], tensors: Sequence[Tensor | None], numbers: Sequence[float], options: dict
) -> None:
    """Launch a kernel on as many programs as `grid` says, or under `compile_ahead` compile it.

    Args:
        kernel: of Triton.
        grid: numbers of programs.
        tensors: its first arguments.
        numbers: its next arguments.
        options: its constants, by name, and those of the compiler.
    """
    if getattr(_thread, 'ahead', False):
        kernel.warmup(*tensors, *numbers, grid=grid, **options)
    else:
        kernel[grid](*tensors, *numbers, **options)


def can_compile_ahead(x: Tensor) -> bool:
    """Whether an operator that was called with this tensor will launch: it has data on a GPU, and nothing records."""
    return x.is_cuda and not is_compiling() and not torch._C._len_torch_dispatch_stack() and not is_interpreted()


def compile_ahead(name: str, key: Hashable, run: Callable[[], None]) -> None:
    """Compile what `run` would launch, the first time that it comes with this key. Raises nothing.

    Args:
        name: of the operator.
        key: what the kernels are compiled for.
        run: launches by `launch`, on maps of no images.
    """
    with _lock:
        if (name, key) in _seen:
            return
        _seen.add((name, key))
    with contextlib.suppress(Exception), _told(name), torch.no_grad():
        _thread.ahead = True
        try:
            with _side_by_side():
                run()
        finally:
            _thread.ahead = False


@contextlib.contextmanager
def _side_by_side() -> Iterator[None]:
    """What is compiled inside takes a thread each, and is done at the end; in older Tritons one after another."""
    import triton

    if not hasattr(triton, 'AsyncCompileMode'):
        yield
        return
    with ThreadPoolExecutor(os.cpu_count()) as pool, triton.AsyncCompileMode(pool):
        yield


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    message = (
        'Compiling kernels for the GPU, once for this GPU and version of Triton: some seconds an operator (%s) ...'
    )
    timer = threading.Timer(PATIENCE, warn_once, (message, name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
