"""Reads files of Python's `pickle` that hold tensors, without running anything they say.

Saved predictions are such files. They name what `safe_reading` knows; a tensor's numbers stand in them as a file of
`torch.save` of their own.
"""

import functools
import mmap
import os
import pickle
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from .safe_reading import CALLED, Operations, RestrictedUnpickler, load_legacy, reader_of

__all__ = ['load_pickle']


def load_pickle(path: str | os.PathLike) -> Any:
    """The content of a file of `pickle`, of protocol 2 to 4: plain values, arrays of numbers, tensors on the CPU.

    Raises:
        pickle.UnpicklingError: if it names anything else.
        Exception: of any kind, if it is damaged.
    """
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _Unpickler(content).load()


@functools.cache
def _reader() -> SimpleNamespace:
    return reader_of()


def _storage(content: bytes) -> Any:
    """Stands in for ``torch.storage._load_from_bytes``."""
    if type(content) is not bytes:
        raise pickle.UnpicklingError(f'reads a storage of {type(content).__name__}')
    return load_legacy(content, map_location='cpu', pickle_module=_reader(), weights_only=False)


class _Unpickler(RestrictedUnpickler):
    called: Mapping[str, Callable] = {**CALLED, 'torch.storage._load_from_bytes': _storage}

    def _add_items(self) -> None:
        items = self.pop_mark()
        if type(self.stack[-1]) is not set:
            raise pickle.UnpicklingError(f'adds to a {type(self.stack[-1]).__name__}')
        self.stack[-1].update(items)

    dispatch = Operations(RestrictedUnpickler.dispatch)
    for _name in (
        *('FRAME', 'MEMOIZE', 'STACK_GLOBAL', 'SHORT_BINUNICODE', 'BINUNICODE8', 'LONG4'),
        *('SHORT_BINBYTES', 'BINBYTES', 'BINBYTES8', 'BYTEARRAY8', 'POP_MARK', 'POP'),
    ):
        _code = getattr(pickle, _name)[0]
        dispatch[_code] = pickle._Unpickler.dispatch[_code]
    dispatch[pickle.ADDITEMS[0]] = _add_items
