"""Lets `torch.load` read mmengine's own checkpoints in its safe mode.

A checkpoint written during training holds the run's scalars: `HistoryBuffer` objects, and numpy arrays and numbers
inside them. Safe mode (``weights_only=True``, the default since torch 2.6) refuses both, so resuming and testing
would need the unsafe one. Exactly these types are allowed here; none of them can run code while being read.

A `HistoryBuffer` also refers to its own methods, which pickle spells as a call of ``getattr``. Python's ``getattr``
would open a way to everything, so a function that finds those methods and nothing else is allowed in its place.
"""

import pickle
from collections.abc import Callable

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

__all__ = ['allow_mmengine_checkpoints']

_HISTORY_METHODS = ('min', 'max', 'current', 'mean')
_NUMPY_FUNCTIONS = ('_reconstruct', 'scalar')
_NUMPY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')  # as numpy 1 and numpy 2 spell it
_NUMPY_DTYPES = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64')
_NUMPY_DTYPES += ('float16', 'float32', 'float64')


def _history_method(owner: type, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: one of `HistoryBuffer`'s statistics.

    Raises:
        pickle.UnpicklingError: for anything else.
    """
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')
    return getattr(owner, name)


def allow_mmengine_checkpoints() -> None:
    """Adds the types to torch's list. Before torch 2.6 safe mode is not the default, and nothing is done."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    allowed = [HistoryBuffer, np.ndarray, np.dtype, *{type(np.dtype(name)) for name in _NUMPY_DTYPES}]
    for module in _NUMPY_MODULES:
        allowed += [(getattr(multiarray, name), f'{module}.{name}') for name in _NUMPY_FUNCTIONS]
    allowed.append((_history_method, 'builtins.getattr'))
    torch.serialization.add_safe_globals(allowed)
