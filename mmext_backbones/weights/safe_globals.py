"""Lets mmengine's own checkpoints be read safely.

A checkpoint written during training holds the run's scalars: `HistoryBuffer` objects, and numpy arrays and numbers
inside them. torch's safe mode (``weights_only=True``, the default since torch 2.6) refuses both, so resuming and
testing would need the unsafe one. Exactly these types are allowed here; none of them can run code while being read.

A `HistoryBuffer` also refers to its own methods, which pickle spells as a call of ``getattr``. Python's ``getattr``
would open a way to everything, so a function that finds those methods and nothing else is allowed in its place.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

from . import restricted_pickle

__all__ = ['CHECKPOINT', 'allow_mmengine_checkpoints', 'safe_load']

_HISTORY_METHODS = ('min', 'max', 'current', 'mean')
# from this version on torch's safe mode can be told of names, and what stands for them
_TOLD = digit_version(torch.__version__) >= digit_version('2.6')


def _history_method(owner: type, name: str) -> Callable:
    """Stands in for ``getattr`` while a checkpoint is read: one of `HistoryBuffer`'s statistics.

    Raises:
        pickle.UnpicklingError: for anything else.
    """
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r}) is not allowed in a checkpoint')
    return getattr(owner, name)


CHECKPOINT = {
    **restricted_pickle.NUMPY,
    f'{HistoryBuffer.__module__}.{HistoryBuffer.__name__}': HistoryBuffer,
    'builtins.getattr': _history_method,
    'builtins.bytes': bytes,  # an array without elements
}
"""What a checkpoint of mmengine refers to beside tensors and plain values, by the names in the file."""


def allow_mmengine_checkpoints() -> None:
    """Adds the types to the list of torch's safe mode, where it has one that takes them (torch 2.6)."""
    if not _TOLD:
        return
    # as types: torch has an unpickler of its own, which sets the state of a dtype only where it knows its class
    types = [np.dtype, *{type(np.dtype(name)) for name in restricted_pickle.DTYPES}]
    pairs = [(value, name) for name, value in CHECKPOINT.items() if name != 'numpy.dtype']
    torch.serialization.add_safe_globals([*types, *pairs])


def safe_load(path: Path, map_location: Any = None, *, mmap: bool = False) -> Any:
    """The content of a checkpoint: by torch's safe mode, or by an unpickler as strict where that is too old.

    Args:
        path: Of the file.
        map_location: As in `torch.load`.
        mmap: As in `torch.load`.

    Raises:
        pickle.UnpicklingError: if it refers to anything but tensors, plain values and what mmengine writes.
    """
    if _TOLD:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    return restricted_pickle.read(path, CHECKPOINT, map_location, mmap=mmap)
