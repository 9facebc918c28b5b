"""A batch that gave a non-finite value, saved to a file and read back without running code.

A file holds plain values, tensors, arrays of numbers, and the data samples of the toolboxes. `safe_reading` reads it,
which is told of the data samples, boxes and masks below, as far as their toolboxes are installed.
"""

import contextlib
import importlib
import os
import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.structures import BaseDataElement

from ...utils.errors import UserError, unreadable_checkpoint
from ...utils.files import in_place
from ...weights.fitting import WeightsError
from ...weights.safe_reading import load_restricted

__all__ = ['image_paths', 'read_batch', 'save_whole', 'tensors']

# modules, and what they hold that may be part of a batch
PARTS = {
    'mmengine.structures.base_data_element': ('BaseDataElement',),
    'mmengine.structures.instance_data': ('InstanceData',),
    'mmengine.structures.label_data': ('LabelData',),
    'mmengine.structures.pixel_data': ('PixelData',),
    'mmdet.structures.det_data_sample': ('DetDataSample',),
    'mmdet.structures.track_data_sample': ('TrackDataSample',),
    'mmdet.structures.reid_data_sample': ('ReIDDataSample',),
    'mmdet.structures.bbox.horizontal_boxes': ('HorizontalBoxes',),
    'mmdet.structures.mask.structures': ('BitmapMasks', 'PolygonMasks'),
    'mmseg.structures.seg_data_sample': ('SegDataSample',),
    'mmpretrain.structures.data_sample': ('DataSample',),
    'mmpretrain.structures.multi_task_data_sample': ('MultiTaskDataSample',),
}
HELD = 'tensors, arrays of numbers, plain values, and data samples of ' + ', '.join(
    dict.fromkeys(module.partition('.')[0] for module in PARTS)
)
# what reading a file ends in whose bytes are not those that were written
DAMAGED = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, struct.error)
DAMAGED += (AssertionError, OverflowError)  # torch's own checks
KEYS = ('iteration', 'data_batch', 'random_state', 'weights', 'config')


def save_whole(content: Any, path: Path) -> None:
    """`torch.save` to a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with in_place(path) as partial:
        torch.save(content, partial)


def read_batch(path: str | os.PathLike) -> dict[str, Any]:
    """What `NonFiniteHook` saved; tensors on the CPU.

    Raises:
        UserError: if it is missing, damaged, another kind of file, or refers to anything but data samples.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'{path}: there is no such file. A training leaves them in <work dir>/nonfinite/.')
    try:
        content = load_restricted(path, 'cpu', classes=_parts())
    except pickle.UnpicklingError as error:
        name = str(error).partition('GLOBAL ')[2].split()[:1]
        if not name and 'Unsupported operand' in str(error):
            raise unreadable_checkpoint(str(path), error) from error
        what = f'refers to {name[0]}' if name else str(error)
        raise UserError(f'{path} is not read: it {what}, and a saved batch holds {HELD}.') from error
    except WeightsError:  # TorchScript
        raise
    except DAMAGED as error:
        raise unreadable_checkpoint(str(path), error) from error
    missing = [key for key in KEYS if not isinstance(content, Mapping) or key not in content]
    if missing:
        raise UserError(
            f'{path} is no saved batch: it has no {missing[0]!r}. Expected an iter_N.pth of <work dir>/nonfinite/.'
        )
    return content


def _parts() -> dict[str, type]:
    """The classes of `PARTS` by their names, of the toolboxes that are installed."""
    found = {}
    for module, names in PARTS.items():
        with contextlib.suppress(ImportError):
            found.update({f'{module}.{name}': getattr(importlib.import_module(module), name) for name in names})
    return found


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
