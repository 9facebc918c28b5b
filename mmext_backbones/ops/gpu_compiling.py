"""Launches kernels in Triton, and before the first launch compiles those that will follow it, side by side.

Triton compiles a kernel when it is launched first, each while the program waits, in silence: seconds for every kernel,
once for a GPU and a version of Triton, which keeps them on the disk. What is here saves time and tells what is waited
for; where it fails the launches compile by themselves.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from .gpu_support import is_interpreted
from .kernel_cache import logger
from .torch_versions import is_compiling

PATIENCE = 2  # seconds after which a person is told what is waited for
AGAIN = 10  # seconds between the lines after that

_seen: set[Hashable] = set()
_lock = threading.Lock()
_thread = threading.local()  # its `jobs` are what launches would compile, where they are only collected


def launch(
    kernel: Any, grid: tuple[int, ...], tensors: Sequence[Tensor | None], numbers: Sequence[float], options: dict
) -> None:
    """Launch a kernel on as many programs as `grid` says, or under `compile_ahead` have it compiled.

    Args:
        kernel: of Triton.
        grid: numbers of programs.
        tensors: its first arguments.
        numbers: its next arguments.
        options: its constants, by name, and those of the compiler.
    """

    def compile_it() -> None:
        with torch.cuda.device_of(tensors[0]):
            kernel.warmup(*tensors, *numbers, grid=grid, **options)

    jobs = getattr(_thread, 'jobs', None)
    if jobs is None:
        kernel[grid](*tensors, *numbers, **options)
    else:
        jobs.append(compile_it)


def can_compile_ahead(x: Tensor) -> bool:
    """Whether an operator that was called with this tensor will launch: it has data on a GPU, and nothing records."""
    return x.is_cuda and not is_compiling() and not torch._C._len_torch_dispatch_stack() and not is_interpreted()


def compile_ahead(name: str, key: Hashable, run: Callable[[], None]) -> list[Exception]:
    """Compile what `run` would launch, the first time that it comes with this key.

    Args:
        name: of the operator.
        key: what the kernels are compiled for.
        run: launches by `launch`, on maps of no images.

    Returns:
        What went wrong; the launches will meet it.
    """
    with _lock:
        if (name, key) in _seen:
            return []
        _seen.add((name, key))
    errors: list[Exception] = []
    progress = _Progress(name)
    with _kept(errors), torch.no_grad():
        _thread.jobs = jobs = []
        try:
            with _kept(errors):
                run()
        finally:
            _thread.jobs = None
        with progress.told(), _side_by_side(progress, len(jobs)) as count:
            for compile_it in jobs:
                with _kept(errors):
                    compile_it()
                count()
    return errors


@contextlib.contextmanager
def _kept(errors: list[Exception]) -> Iterator[None]:
    """An error ends what is inside, and is appended."""
    try:
        yield
    except Exception as error:  # whatever compiler, driver and file system raise
        errors.append(error)


class _Progress:
    """How many kernels are compiled, of how many; told where that takes long."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.done = name, 0, []

    def add(self, future: Future) -> None:
        self.total += 1
        future.add_done_callback(self.done.append)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        ended = threading.Event()

        def tell() -> None:
            wait = PATIENCE
            while not ended.wait(wait):
                message = 'Compiling GPU kernels, once for this GPU and version of Triton: %d of %d (%s)'
                logger.warning(message, len(self.done), self.total, self.name)
                wait = AGAIN

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield
        finally:
            ended.set()


class _Pool(ThreadPoolExecutor):
    """Threads whose work counts as progress."""

    def __init__(self, progress: _Progress) -> None:
        super().__init__(os.cpu_count())
        self.progress = progress

    def submit(self, *args, **kwargs) -> Future:
        future = super().submit(*args, **kwargs)
        self.progress.add(future)
        return future


@contextlib.contextmanager
def _side_by_side(progress: _Progress, jobs: int) -> Iterator[Callable[[], None]]:
    """What is compiled inside takes a thread each, and is done at the end; in older Tritons one after another.

    Gives what is to be called after each job.
    """
    import triton

    if not hasattr(triton, 'AsyncCompileMode'):
        progress.total = jobs
        yield lambda: progress.done.append(None)
        return
    with _Pool(progress) as pool, triton.AsyncCompileMode(pool):
        yield lambda: None
