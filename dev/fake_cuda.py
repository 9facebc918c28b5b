"""CUDA tensors without data, where there is no GPU: networks run on them forward, backward and under autocast."""

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

__all__ = ['fake_cuda']


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Inside, tensors have a shape, a type and a device, and CUDA needs no driver.

    Autograd runs in one thread: its threads are one a device, of which there is none.
    """
    _leave_the_driver_alone()
    available = mock.patch.object(torch.cuda.amp.common, 'amp_definitely_not_available', return_value=False)
    with (
        available,
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode


@functools.cache
def _leave_the_driver_alone() -> None:
    """Tell PyTorch that no GPU is in use.

    Autograd makes the stream of a tensor's device the current one, and before it asks whether this process uses that
    GPU. The answer comes from the driver, and of a GPU that is not there it is an error.
    """
    library = Path(torch.__file__).with_name('lib') / 'libc10_cuda.so'
    if torch.cuda.is_available() or not library.is_file():
        return
    set_function = ctypes.CDLL(str(library))._ZN3c104cuda9_internal20setHasPrimaryContextEPFbaE
    set_function.argtypes, set_function.restype = [type(_no_context)], None
    set_function(_no_context)


@ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_int8)
def _no_context(device: int) -> bool:  # as long as the library lives
    return False
