"""Lets `torch.load` read mmengine's own checkpoints in its safe mode.

A checkpoint written during training holds the run's scalars: `HistoryBuffer` objects, and numpy arrays and numbers
inside them. Safe mode (``weights_only=True``, the default since torch 2.6) refuses both, so resuming and testing
would need the unsafe one. Exactly these types are allowed here; none of them can run code while being read.
"""

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

__all__ = ['allow_mmengine_checkpoints']

_NUMPY_FUNCTIONS = ('_reconstruct', 'scalar')
_NUMPY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')  # as numpy 1 and numpy 2 spell it
_NUMPY_DTYPES = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64')
_NUMPY_DTYPES += ('float16', 'float32', 'float64')


def allow_mmengine_checkpoints() -> None:
    """Adds the types to torch's list. Before torch 2.6 safe mode is not the default, and nothing is done."""
    if digit_version(torch.__version__) < digit_version('2.6'):
        return
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    allowed = [HistoryBuffer, np.ndarray, np.dtype, *{type(np.dtype(name)) for name in _NUMPY_DTYPES}]
    for module in _NUMPY_MODULES:
        allowed += [(getattr(multiarray, name), f'{module}.{name}') for name in _NUMPY_FUNCTIONS]
    torch.serialization.add_safe_globals(allowed)
