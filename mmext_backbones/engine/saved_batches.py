"""A batch that gave a non-finite value, on disk: written in whole or not at all, read without running anything.

A file holds plain values, tensors and the data samples of the toolboxes. It is read by an unpickler that knows these
and nothing else: the classes that are data samples, boxes or masks of an installed toolbox.
"""

import contextlib
import importlib
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement

from ..errors import UserError, unreadable_checkpoint
from ..weights import restricted_pickle

__all__ = ['image_paths', 'read_batch', 'save_whole', 'tensors']

TOOLBOXES = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain')
# beside data elements: (module, name) of the base classes of what they hold
HELD = (('mmdet.structures.bbox', 'BaseBoxes'), ('mmdet.structures.mask.structures', 'BaseInstanceMasks'))
KEYS = ('iteration', 'data_batch', 'random_state', 'weights', 'config')


def save_whole(content: Any, path: Path) -> None:
    """`torch.save` to a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(handle, 'wb') as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_batch(path: str | os.PathLike) -> dict[str, Any]:
    """What `NonFiniteHook` saved; tensors on the CPU.

    Raises:
        UserError: if it is missing, damaged, another kind of file, or refers to anything but data samples.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: there is no such file. A training leaves them in <work dir>/nonfinite/.')
    try:
        content = restricted_pickle.read(path, partial(_allowed, path=path), 'cpu')
    except UserError:
        raise
    except (RuntimeError, ValueError, OSError, EOFError, LookupError, pickle.UnpicklingError) as error:  # damaged
        raise unreadable_checkpoint(str(path), error) from error
    missing = [key for key in KEYS if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise UserError(
            f'{path} is no saved batch: it has no {missing[0]!r}. Expected an iter_N.pth of <work dir>/nonfinite/.'
        )
    return content


def _allowed(name: str, path: Path) -> Any:
    """An array of numbers, or the class of that name, if it is a data sample or a part of one.

    Raises:
        UserError: if it is anything else.
    """
    if name in restricted_pickle.NUMPY:
        return restricted_pickle.NUMPY[name]
    module, _, attribute = name.rpartition('.')
    found = None
    if module.partition('.')[0] in TOOLBOXES:
        with contextlib.suppress(ImportError, AttributeError):
            found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, type) and issubclass(found, (BaseDataElement, *_held())):
        return found
    raise UserError(f'{path} is not read: it refers to {name}, which is no data sample of {", ".join(TOOLBOXES)}.')


def _held() -> Iterator[type]:
    for module, name in HELD:
        with contextlib.suppress(ImportError):
            yield getattr(importlib.import_module(module), name)


def image_paths(batch: Any) -> list[str]:
    """The files of the images of a batch of any nesting, in order."""
    paths = {}
    for node in _nodes(batch):
        path = node.get('img_path') if isinstance(node, (Mapping, BaseDataElement)) else None
        for each in path if isinstance(path, (list, tuple)) else [path]:
            if isinstance(each, (str, os.PathLike)):
                paths[str(each)] = None
    return list(paths)


def tensors(batch: Any) -> list[torch.Tensor]:
    """The images of a batch: every tensor outside its data samples, one entry for each image [C, H, W]."""
    found = []
    for node in _nodes(batch, into_samples=False):
        if isinstance(node, torch.Tensor):
            found += list(node) if node.dim() == 4 else [node]
    return found


def _nodes(node: Any, into_samples: bool = True) -> Iterator[Any]:
    yield node
    if isinstance(node, Mapping):
        children = node.values()
    elif isinstance(node, (list, tuple)):
        children = node
    elif isinstance(node, BaseDataElement) and into_samples:
        children = [value for value in node.all_values() if isinstance(value, BaseDataElement)]
    else:
        return
    for child in children:
        yield from _nodes(child, into_samples)
