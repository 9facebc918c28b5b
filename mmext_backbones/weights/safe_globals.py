"""What a checkpoint may name besides tensors and plain values, and what stands for it while the file is read.

A checkpoint written during training holds the run's scalars: `HistoryBuffer` objects, and numpy arrays and numbers
inside them. Safe mode (``weights_only=True``, the default since torch 2.6) refuses both, so resuming and testing
would need the unsafe one. Exactly these types are allowed here; none of them can run code while being read.

A `HistoryBuffer` also refers to its own methods, which pickle spells as a call of ``getattr``. Python's ``getattr``
would open a way to everything, so a function that finds those methods and nothing else is allowed in its place. For
the same reason functions that look at their arguments stand for numpy's.
"""

import importlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

__all__ = ['CALLED', 'HISTORY_METHODS', 'TORCH_TAKES_A_LIST', 'allow_mmengine_checkpoints', 'is_plain_dtype']

# Pairs of an object and the name it stands for; and before 2.6 safe mode ran what a TorchScript file says.
TORCH_TAKES_A_LIST = digit_version(torch.__version__) >= digit_version('2.6')

HISTORY_METHODS = ('min', 'max', 'current', 'mean')
_NUMPY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')  # as numpy 1 and numpy 2 spell it
_NUMPY_DTYPES = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64')
_NUMPY_DTYPES += ('float16', 'float32', 'float64')
_DTYPE_CODES = tuple(np.dtype(name).str[1:] for name in _NUMPY_DTYPES)
# numpy 1.26 has a numpy._core too, which is empty
_multiarray = importlib.import_module(_NUMPY_MODULES[digit_version(np.__version__) >= digit_version('2.0')])


def _history_method(owner: type, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: one of `HistoryBuffer`'s statistics.

    Raises:
        pickle.UnpicklingError: for anything else.
    """
    if owner is not HistoryBuffer or name not in HISTORY_METHODS:
        raise pickle.UnpicklingError(f'calls getattr({owner!r}, {name!r}), which is not allowed in a checkpoint')
    return getattr(owner, name)


def is_plain_dtype(dtype: Any) -> bool:
    """Whether these are numbers, none of them a Python object."""
    return isinstance(dtype, np.dtype) and dtype.kind in 'biuf' and not dtype.hasobject


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    """Stands in for ``numpy.dtype``: numbers, neither objects nor structures."""
    if code not in _DTYPE_CODES:
        raise pickle.UnpicklingError(f'holds numpy.dtype({code!r}), and only plain numbers are allowed in a checkpoint')
    return np.dtype(code, False, True)


def _reconstruct(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """Stands in for numpy's: an empty array, which its state fills."""
    if kind is not np.ndarray or shape != (0,) or code not in (b'b', 'b'):
        raise pickle.UnpicklingError(f'holds a numpy array of {kind!r}, which is not allowed in a checkpoint')
    return np.ndarray(0, np.int8)


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    """Stands in for numpy's."""
    if not is_plain_dtype(dtype) or type(data) is not bytes:
        raise pickle.UnpicklingError('holds a numpy scalar that is no number, which is not allowed in a checkpoint')
    return _multiarray.scalar(dtype, data)


def _no_bytes() -> bytes:
    """``bytes``, of nothing: the content of an empty array."""
    return b''


# what a file may call, by name, and what is called then
CALLED: dict[str, Callable] = {
    'builtins.getattr': _history_method,
    'builtins.bytes': _no_bytes,
    'numpy.dtype': _dtype,
    **{f'{module}._reconstruct': _reconstruct for module in _NUMPY_MODULES},
    **{f'{module}.scalar': _scalar for module in _NUMPY_MODULES},
}


def allow_mmengine_checkpoints() -> None:
    """Adds the list to torch's own, where torch takes one: its plain `torch.load` reads these checkpoints then."""
    if not TORCH_TAKES_A_LIST:
        return
    allowed = [HistoryBuffer, np.ndarray, *{type(np.dtype(name)) for name in _NUMPY_DTYPES}]
    torch.serialization.add_safe_globals([*allowed, *((function, name) for name, function in CALLED.items())])
