"""Reads files of `torch.save` without running anything they say, on every version of torch.

From torch 2.6 on its own safe mode reads checkpoints: it is maintained with the format, knows every kind of tensor, and
takes the few types of `safe_globals`. Older versions take no such list, and their safe mode runs TorchScript files
(CVE-2025-32434). There, `load_restricted` reads: `torch.load` with an unpickler that knows the operations safe mode
knows, and carries them out on the short list below alone. It serves on every version, and everywhere where a list
beyond that of checkpoints is needed.

What a file can do here: make plain values, tensors, and arrays of numbers; call the functions of `CALLED`, which look
at their arguments; make objects of the classes that the reader is told of, without calling their ``__init__``, and set
their attributes. What may only be named cannot be called. Nothing is imported because a file names it.
"""

import io
import os
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from . import safe_globals
from .errors import WeightsError

__all__ = ['keep_tensors', 'load', 'load_restricted']

ZIP = b'PK\x03\x04'  # how torch tells its formats apart


def load(path: str | os.PathLike, map_location: Any = None, *, mmap: bool = False) -> Any:
    """The content of a checkpoint; with `mmap` tensors stay on disk, where the format allows.

    Raises:
        pickle.UnpicklingError: if it names anything but tensors, plain values and what mmengine saves.
        WeightsError: if it is a TorchScript archive.
    """
    if not safe_globals.TORCH_TAKES_A_LIST:
        return load_restricted(path, map_location, mmap=mmap)
    is_zip = _check_format(path)
    methods = HistoryBuffer._statistics_methods
    before = {name: getattr(HistoryBuffer, name) for name in safe_globals.HISTORY_METHODS} | methods
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and is_zip)
    finally:  # mmengine takes over those of a file for the whole process; torch does not look at them
        methods.clear()
        methods.update(before)


def load_restricted(
    path: str | os.PathLike, map_location: Any = None, *, mmap: bool = False, classes: Mapping[str, type] | None = None
) -> Any:
    """As `load`, by the unpickler of this file.

    Args:
        path: Of the file.
        map_location: As in `torch.load`.
        mmap: Whether tensors stay on disk, where the format allows.
        classes: By full name, what the file may hold objects of; their attributes are set without a call.
    """
    options = {'map_location': map_location, 'pickle_module': reader_of(classes), 'weights_only': False}
    if _check_format(path):
        if Path(path).suffix == '.safetensors':  # by which newer versions of torch choose another reader
            return torch.load(io.BytesIO(Path(path).read_bytes()), **options)
        return torch.load(os.fspath(path), mmap=mmap, **options)  # torch 2.1 maps no Path
    # from memory: torch unpacks files that are a tar archive (before 0.1.10), with whatever links these hold
    with open(path, 'rb') as file:
        return load_legacy(file.read(), **options)


def load_legacy(content: bytes, **options: Any) -> Any:
    if not content.startswith(pickle.PROTO):
        raise pickle.UnpicklingError('Unsupported operand: no file of torch.save')
    return torch.load(io.BytesIO(content), **options)


def reader_of(classes: Mapping[str, type] | None = None) -> SimpleNamespace:
    """What `torch.load` takes for the module that reads."""
    unpickler = type('Unpickler', (RestrictedUnpickler,), {'classes': dict(classes or {})})
    return SimpleNamespace(
        __name__=__name__, Unpickler=unpickler, load=lambda file, **options: unpickler(file, **options).load()
    )


def _check_format(path: str | os.PathLike) -> bool:
    """Whether a file is of torch's current format, a zip archive.

    Raises:
        WeightsError: if it is a TorchScript archive, which `torch.load` would hand to another reader.
    """
    with open(path, 'rb') as file:
        if file.read(len(ZIP)) != ZIP:
            return False
    # by torch's own reader: another one may see other files in the same bytes
    if 'constants.pkl' in torch._C.PyTorchFileReader(os.fspath(path)).get_all_records():
        raise WeightsError(
            f'{os.fspath(path)} is not read: it is a TorchScript archive, a program, and reading it could run it. If '
            'you trust whoever made it, keep its tensors alone, in a file OUT:\n'
            + keep_tensors(path, "torch.jit.load({}, 'cpu')")
        )
    return True


def keep_tensors(path: str | os.PathLike, call: str) -> str:
    """A command for a shell that writes the tensors of a file, and the mappings they stand in, to the file OUT.

    Args:
        path: Of the file.
        call: What reads it, in Python with single quotes, with braces where the path belongs.
    """
    plain = (char if char.isalnum() or char in ' /._-+,=@:()' else f'\\U{ord(char):08x}' for char in os.fspath(path))
    read = call.format(f"'{''.join(plain)}'")
    return (
        'python -c "import torch; '
        'keep = lambda x: keep(x.state_dict()) if isinstance(x, torch.nn.Module) else x if not isinstance(x, dict) '
        'else {k: keep(v) for k, v in x.items() if isinstance(v, (dict, torch.Tensor, torch.nn.Module))}; '
        f"torch.save(keep({read}), 'OUT')\""
    )


# --------------------------------------------------------------------------------------------------------------------
# What a file may call


def _tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, grad: bool = False, hooks: Any = None, metadata: Any = None
) -> torch.Tensor:
    """``torch._utils._rebuild_tensor`` and ``_v2``, without hooks: those are functions, and torch saves none."""
    _check_storage(storage, offset, size, stride)
    metadata = (dict(metadata),) if metadata else ()
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, grad, OrderedDict(), *metadata)


def _check_storage(storage: Any, offset: int, size: tuple, stride: tuple) -> None:
    """A tensor lies within its numbers: torch would take as much memory more as it asks for, and leave it unwritten."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f'makes a tensor of {type(storage).__name__}')
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError('makes a tensor of a size that is none')
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if all(size) and last >= storage._size():
        raise pickle.UnpicklingError('makes a tensor that is larger than its numbers')


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Any = None) -> torch.nn.Parameter:
    if not isinstance(data, torch.Tensor):
        raise pickle.UnpicklingError(f'makes a parameter of {type(data).__name__}')
    return torch.nn.Parameter(data, requires_grad)


def _layout(name: str) -> torch.layout:
    return torch.serialization._get_layout(str(name))


def _sparse(layout: torch.layout, data: tuple) -> torch.Tensor:
    if not isinstance(layout, torch.layout):
        raise pickle.UnpicklingError(f'makes a sparse tensor of the layout {layout!r}')
    return torch._utils._rebuild_sparse_tensor(layout, data)


def _quantized(
    storage: Any, offset: int, size: tuple, stride: tuple, scheme: tuple, grad: bool, hooks: Any = None
) -> torch.Tensor:
    _check_storage(storage, offset, size, stride)
    return torch._utils._rebuild_qtensor(storage, offset, size, stride, scheme, grad, OrderedDict())


def _bytes(text: str, encoding: str) -> bytes:
    """``_codecs.encode``: bytes, as pickle's protocol 2 spells them."""
    if type(text) is not str or encoding != 'latin1':
        raise pickle.UnpicklingError(f'encodes as {encoding!r}')
    return text.encode('latin1')


def _counter(counts: dict | None = None) -> Counter:
    """Milestones of a schedule."""
    return Counter(counts if type(counts) is dict else None)


def _set(items: list | None = None) -> set:
    return set(items if type(items) is list else ())


def _ordered_dict(items: list | None = None) -> OrderedDict:
    return OrderedDict(items if type(items) is list else ())


def _size(numbers: tuple) -> torch.Size:
    return torch.Size(numbers)


def _device(kind: str, index: int | None = None) -> torch.device:
    return torch.device(kind) if index is None else torch.device(kind, index)


def _complex(real: float, imaginary: float) -> complex:
    return complex(real, imaginary)


CALLED: dict[str, Callable] = {
    **safe_globals.CALLED,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_sparse_tensor': _sparse,
    'torch._utils._rebuild_qtensor': _quantized,
    'torch.serialization._get_layout': _layout,
    'torch.Size': _size,
    'torch.device': _device,
    '_codecs.encode': _bytes,
    'builtins.set': _set,
    'builtins.complex': _complex,
    'collections.Counter': _counter,
    'collections.OrderedDict': _ordered_dict,
}
# what it may name, as the argument of one of those
NAMED: dict[str, Any] = {
    'numpy.ndarray': np.ndarray,
    'mmengine.logging.history_buffer.HistoryBuffer': HistoryBuffer,
    'torch.storage.UntypedStorage': torch.UntypedStorage,
    **{str(value): value for value in vars(torch).values() if isinstance(value, (torch.dtype, torch.qscheme))},
}


# --------------------------------------------------------------------------------------------------------------------
# The unpickler


class Operations(dict):
    def __missing__(self, code: int) -> Callable:
        raise pickle.UnpicklingError(f'Unsupported operand {code}')


class RestrictedUnpickler(pickle._Unpickler):
    """Python's own, in Python, with every operation that calls, names or changes something in a form that looks first.

    `torch.load` derives from it, and turns the names of storages into types of its own.
    """

    called: Mapping[str, Callable] = CALLED
    classes: Mapping[str, type] = {}

    dispatch = Operations(
        (getattr(pickle, name)[0], pickle._Unpickler.dispatch[getattr(pickle, name)[0]])
        for name in (
            *('PROTO', 'STOP', 'MARK', 'GLOBAL', 'NONE', 'NEWTRUE', 'NEWFALSE', 'BININT', 'BININT1', 'BININT2'),
            *('LONG1', 'BINFLOAT', 'BINUNICODE', 'SHORT_BINSTRING'),
            *('EMPTY_TUPLE', 'EMPTY_LIST', 'EMPTY_DICT', 'EMPTY_SET'),
            *('TUPLE', 'TUPLE1', 'TUPLE2', 'TUPLE3', 'BINGET', 'LONG_BINGET', 'BINPUT', 'LONG_BINPUT'),
        )
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NAME_MAPPING:  # as Python 2 spelt it, and so protocol 2
            module, name = NAME_MAPPING[module, name]
        full = f'{IMPORT_MAPPING.get(module, module)}.{name}'
        for allowed in (self.called, NAMED, self.classes):
            if full in allowed:
                return allowed[full]
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full} was not an allowed global')

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is each for each in self.called.values()) or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f'calls {_name(function)}')
        self.stack[-1] = function(*arguments)

    def _new(self) -> None:
        arguments, cls = self.stack.pop(), self.stack.pop()
        if not any(cls is allowed for allowed in (HistoryBuffer, *self.classes.values())) or arguments != ():
            raise pickle.UnpicklingError(f'makes a {_name(cls)}')
        self.append(object.__new__(cls))

    def _build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        kind = type(instance)
        if kind is np.ndarray:
            _fill_array(instance, state)
        elif kind is HistoryBuffer:
            _fill_history(instance, state)
        elif isinstance(instance, np.dtype):
            _set_byte_order(instance, state)
        elif kind is OrderedDict or any(kind is allowed for allowed in self.classes.values()):
            vars(instance).update(_attributes(state))
        else:
            raise pickle.UnpicklingError(f'sets attributes of a {kind.__name__}')

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError(f'appends to a {type(self.stack[-1]).__name__}')
        self.stack[-1].extend(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self) -> None:
        self._update(self.pop_mark())

    def _update(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict, Counter):
            raise pickle.UnpicklingError(f'sets items of a {type(target).__name__}')
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key] = value

    def _storage(self) -> None:
        """The one kind of reference out of the pickle: a tensor's numbers. `torch.load` finds them."""
        reference = self.stack.pop()
        kind = reference[0] if type(reference) is tuple and reference else None
        if kind not in ('storage', b'storage'):
            raise pickle.UnpicklingError('refers to something outside that is no storage')
        typed = isinstance(reference[1], torch.serialization.StorageType)
        if not typed and reference[1] is not torch.UntypedStorage:
            raise pickle.UnpicklingError(f'stores a tensor as {_name(reference[1])}')
        self.append(self.persistent_load(reference))

    for _code, _function in (
        *((pickle.REDUCE, _reduce), (pickle.NEWOBJ, _new), (pickle.BUILD, _build), (pickle.BINPERSID, _storage)),
        *((pickle.APPEND, _append), (pickle.APPENDS, _appends)),
        *((pickle.SETITEM, _set_item), (pickle.SETITEMS, _set_items)),
    ):
        dispatch[_code[0]] = _function


def _name(value: Any) -> str:
    return getattr(value, '__qualname__', None) or type(value).__name__


def _attributes(state: Any) -> dict[str, Any]:
    if type(state) is not dict or not all(type(name) is str for name in state):
        raise pickle.UnpicklingError(f'sets attributes from a {type(state).__name__}')
    return state


def _fill_array(array: np.ndarray, state: Any) -> None:
    """numpy's own way, for numbers: version, shape, type, order of axes, bytes."""
    version, shape, dtype, fortran, data = state
    sizes = type(shape) is tuple and all(type(size) is int and size >= 0 for size in shape)
    if version != 1 or not sizes or not safe_globals.is_plain_dtype(dtype) or type(data) is not bytes:
        raise pickle.UnpicklingError('holds a numpy array that is not of plain numbers')
    array.__setstate__((1, shape, dtype, bool(fortran), data))


def _set_byte_order(dtype: np.dtype, state: Any) -> None:
    """The flags of a type are taken from its state, and could declare numbers to be pointers: they must be 0."""
    plain = type(state) is tuple and len(state) == 8 and state[0] == 3
    if not plain or state[1] not in ('<', '>', '|', '=') or state[2:] != (None, None, None, -1, -1, 0):
        raise pickle.UnpicklingError('holds a numpy type that is no plain number')
    dtype.__setstate__(state)


def _fill_history(history: HistoryBuffer, state: Any) -> None:
    """Its methods are those of the class, for all its objects: a file may repeat them, not exchange them."""
    attributes = dict(_attributes(state))
    methods = attributes.get('statistics_methods', {})
    own = {name: getattr(HistoryBuffer, name) for name in safe_globals.HISTORY_METHODS}
    if type(methods) is not dict or any(own.get(name) is not method for name, method in methods.items()):
        raise pickle.UnpicklingError('exchanges methods of HistoryBuffer')
    history.__setstate__(attributes)
