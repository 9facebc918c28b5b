"""Files of `torch.save`, read by an unpickler that builds what a list allows and nothing else, on any version of torch.

torch's own safe mode (``weights_only=True``) is maintained there, and preferred where it can be told which classes a
file may hold: from torch 2.6 on. Before, a file of mmengine's could be read in the unsafe mode only. `torch.load` takes
another unpickler in that mode, on every version. The one below knows

- the functions and types that `torch.save` writes for tensors and plain values,
- what it is given as `allowed` by its caller,

and refuses every other name before it is looked up. An object's state is put only into instances of these types, never
into a class or a function.
"""

import _compat_pickle
import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

__all__ = ['DTYPES', 'NUMPY', 'read']

_REBUILDING = ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_parameter', '_rebuild_sparse_tensor')
_REBUILDING += ('_rebuild_qtensor', '_rebuild_meta_tensor_no_storage')
DTYPES = ('bool', 'int8', 'int16', 'int32', 'int64', 'uint8', 'uint16', 'uint32', 'uint64')
DTYPES += ('float16', 'float32', 'float64')
_NUMPY_FUNCTIONS = ('_reconstruct', 'scalar')
_NUMPY_MODULES = ('numpy.core.multiarray', 'numpy._core.multiarray')  # as numpy 1 and numpy 2 spell it


def _encode(text: str, encoding: str = 'latin1') -> bytes:
    """How protocol 2 writes bytes; other encodings could be anything that Python has a codec for."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'bytes encoded as {encoding!r} are not allowed in a file')
    return text.encode('latin1')


def _dtype(code: str, *options: Any) -> np.dtype:
    """A dtype of numbers; one of objects would hold anything."""
    if not isinstance(code, str) or np.dtype(code) not in map(np.dtype, DTYPES):
        raise pickle.UnpicklingError(f'arrays of numpy.dtype({code!r}) are not allowed in a file')
    return np.dtype(code, *options)


def _plain() -> dict[str, Any]:
    """What tensors and plain values need, by the names in a file."""
    found = {
        'collections.OrderedDict': OrderedDict,
        'builtins.set': set,
        'builtins.bytes': bytes,
        '_codecs.encode': _encode,
        'torch.Size': torch.Size,
        'torch.Tensor': torch.Tensor,
        'torch.device': torch.device,
        'torch.nn.parameter.Parameter': torch.nn.Parameter,
        'torch.serialization._get_layout': torch.serialization._get_layout,
    }
    utils = vars(torch._utils)
    found |= {f'torch._utils.{name}': utils[name] for name in _REBUILDING if name in utils}
    found |= {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    found |= {f'{kind.__module__}.{kind.__name__}': kind for kind in torch._storage_classes}
    found['torch.storage.UntypedStorage'] = torch.UntypedStorage
    return found


def _numpy() -> dict[str, Any]:
    # numpy 1.26 has a `numpy._core` too, with nothing in it
    own = 'numpy._core.multiarray' if int(np.__version__.partition('.')[0]) >= 2 else 'numpy.core.multiarray'
    multiarray = __import__(own, fromlist=['multiarray'])
    found = {f'{module}.{name}': getattr(multiarray, name) for module in _NUMPY_MODULES for name in _NUMPY_FUNCTIONS}
    return {**found, 'numpy.ndarray': np.ndarray, 'numpy.dtype': _dtype}


NUMPY = _numpy()
"""Arrays of numbers, by the names in a file."""


class _Unpickler(pickle._Unpickler):
    """Python's unpickler in Python, because the one in C sets the state of any object.

    Attributes:
        find: from a dotted name to what stands for it; None for what is not allowed.
    """

    find: Callable[[str], Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.classes: tuple[type, ...] = (torch.Tensor, OrderedDict, np.ndarray, np.dtype)

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3 and self.fix_imports:  # as Python 2 named them
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if not re.fullmatch(r'[\w.]+', module) or not re.fullmatch(r'[\w.]+', name):
            raise pickle.UnpicklingError('Unsupported operand: no pickle')  # damaged, not malicious
        found = self.find(f'{module}.{name}')
        if found is None:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name}')
        if isinstance(found, type):
            self.classes += (found,)
        return found

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError('Unsupported global: GLOBAL copyreg.add_extension')

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if isinstance(target, type) or not isinstance(target, self.classes):
            raise pickle.UnpicklingError(f'the file sets the state of a {type(target).__name__}')
        if isinstance(target, np.dtype) and (state[2:5] != (None, None, None) or state[5] != -1):
            raise pickle.UnpicklingError('the file makes another numpy.dtype of one')
        super().load_build()

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}  # noqa: RUF012


def read(
    path: Path,
    allowed: Mapping[str, Any] | Callable[[str], Any],
    map_location: Any = None,
    *,
    mmap: bool = False,
) -> Any:
    """The content of a file of `torch.save`.

    Args:
        path: Of the file.
        allowed: What it may refer to beside tensors and plain values, by dotted name; or a function from a name to what
            stands for it, None for what is not allowed.
        map_location: As in `torch.load`.
        mmap: As in `torch.load`.

    Raises:
        pickle.UnpicklingError: if it refers to anything else, or is no such file.
    """
    if tarfile.is_tarfile(path):
        raise pickle.UnpicklingError('a file of torch before 0.4; save it again with a newer one')
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise pickle.UnpicklingError('Unsupported global: GLOBAL torch.jit (it is a program of TorchScript)')
    more = allowed.get if isinstance(allowed, Mapping) else allowed
    plain = _plain()

    class Unpickler(_Unpickler):
        @staticmethod
        def find(name: str) -> Any:
            return plain[name] if name in plain else more(name)

    module = SimpleNamespace(
        Unpickler=Unpickler,
        load=lambda file, **options: Unpickler(file, **options).load(),
        UnpicklingError=pickle.UnpicklingError,
        __name__='restricted',
    )
    options = {'mmap': True} if mmap else {}
    return torch.load(str(path), map_location=map_location, pickle_module=module, weights_only=False, **options)
