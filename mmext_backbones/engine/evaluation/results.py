"""The results of a test, class by class: a table, and a JSON file beside the checkpoint.

The file ``<checkpoint>.<config>[_shapes][.tta].json`` (with a number before ``.json`` where another test of the
checkpoint, on other data say, has left one already) holds one object:

    format       1; raised when a key changes its meaning
    config       the path or name of the config
    options      what --cfg-options changed, by dotted key
    checkpoint   {path, bytes, sha256}; the last two null for an address; null if predictions were given
    runtime      what ran an exported file, which stands as the checkpoint then; else null
    predictions  [path, ...] of the given predictions; null if a checkpoint was
    date         when the test ended, ISO 8601 with the offset from UTC
    versions     {package: version}
    shapes       whether the data are Shapes
    dataset      [{type, data_root, ann_file, data_prefix}, ...], of each of these what the config names
    num_images   images in the test data
    tta          whether several views of each image were merged; null if predictions were given
    metrics      {name: value}, as the evaluators of the config call and round them
    per_class    {kind: {class: {measure: value}}}, empty for evaluators other than those below

A value is null where it is undefined: an AP without objects (COCO's -1), the IoU of a class that is nowhere. Kinds and
their measures are, of mmdet's CocoMetric, ``bbox`` and ``segm`` with AP, AP_50, AP_75, AP_s, AP_m, AP_l (0 to 1) and
the number of objects (crowds left out); of mmseg's IoUMetric, ``semantic`` with IoU, Acc and what else it was told to
measure (percent); of mmpretrain's Accuracy and our SubsetAccuracy, ``classification`` with top1 (percent) and the
number of images.
"""

import contextlib
import datetime
import hashlib
import itertools
import json
import math
import numbers
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ...config.editing import walk
from ...utils.files import write_whole
from .per_class import PerClass

__all__ = ['describe', 'results_name', 'write_results']

SAME = (
    'config',
    'options',
    'runtime',
    'shapes',
    'dataset',
    'num_images',
    'tta',
)  # what makes two tests of a checkpoint the same


def describe(
    cfg: Config,
    config: str,
    *,
    metrics: dict[str, float],
    per_class: PerClass,
    num_images: int,
    checkpoint: str | None = None,
    runtime: str | None = None,
    predictions: Sequence[Path] | None = None,
    options: dict[str, Any] | None = None,
    shapes: bool = False,
    tta: bool = False,
) -> dict[str, Any]:
    """The object that goes into the file; the keys are explained at the top of this module.

    Args:
        cfg: The config as it was run.
        config: What the user called it.
        metrics: From the evaluators.
        per_class: From `record_classes`.
        num_images: Images in the test data.
        checkpoint: The checkpoint or the exported file, or
        predictions: the files that were evaluated.
        runtime: What ran the exported file.
        options: What the user overrode in the config.
        shapes: Whether the data are Shapes.
        tta: Whether views were merged.
    """
    import mmext_backbones

    modules = ('torch', 'mmengine', 'mmcv', cfg.get('default_scope'))
    versions = {'mmext_backbones': mmext_backbones.__version__}
    versions |= {name: str(sys.modules[name].__version__) for name in modules if name in sys.modules}
    sources = [
        {
            'type': str(node.type),
            **{key: node[key] for key in ('data_root', 'ann_file', 'data_prefix') if node.get(key)},
        }
        for _, node in walk(cfg.test_dataloader.dataset)
        if 'type' in node and any(node.get(key) for key in ('data_root', 'ann_file', 'data_prefix'))
    ]
    return _plain(
        {
            'format': 1,
            'config': config,
            'options': dict(options or {}),
            'checkpoint': _file(checkpoint) if checkpoint is not None else None,
            'runtime': runtime,
            'predictions': [str(path) for path in predictions] if predictions is not None else None,
            'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
            'versions': versions,
            'shapes': shapes,
            'dataset': sources,
            'num_images': num_images,
            'tta': tta if predictions is None else None,
            'metrics': {name: math.nan if _is_undefined(name, value) else value for name, value in metrics.items()},
            'per_class': per_class,
        }
    )


def _is_undefined(name: str, value: Any) -> bool:
    """True for the -1 of COCO's averages without objects."""
    return ('mAP' in name or 'AR' in name) and isinstance(value, numbers.Real) and value == -1


def results_name(source: str | Path, cfg: Config, *, shapes: bool = False, tta: bool = False) -> str:
    """The name of the file for a checkpoint (or a file of predictions) and a config."""
    config = Path(cfg.filename).stem + ('_shapes' if shapes else '')
    return '.'.join([Path(source).stem, config, *(['tta'] if tta else []), 'json'])


def write_results(record: dict[str, Any], folders: Sequence[str | Path], name: str) -> Path:
    """Writes the file into the first folder that takes it.

    A file of that name about another test (other data, another config or other options) stays: the new one has a
    number in its name then.

    Args:
        record: From `describe`.
        folders: Where it should be, and where else it may be.
        name: From `results_name`.

    Returns:
        The path of the file.

    Raises:
        OSError: if the last folder does not take it either.
    """
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + '\n'
    *first, last = map(Path, folders)
    for folder in first:
        with contextlib.suppress(OSError):
            path = _free_path(folder, name, record)
            write_whole(path, text)
            return path
    path = _free_path(last, name, record)
    write_whole(path, text)
    return path


def _free_path(folder: Path, name: str, record: dict[str, Any]) -> Path:
    """The file of this name, or with the first number, that is not there or holds a result of the same test."""
    stem = name.removesuffix('.json')
    paths = (folder / (name if number == 1 else f'{stem}.{number}.json') for number in itertools.count(1))
    return next(path for path in paths if not path.exists() or _is_same_test(path, record))


def _is_same_test(path: Path, record: dict[str, Any]) -> bool:
    try:
        earlier = json.loads(path.read_text(encoding='utf-8'))
        return all(earlier.get(key) == record.get(key) for key in SAME)  # `runtime` is younger than others
    except (OSError, ValueError, RecursionError, AttributeError):
        return False  # of somebody else


def _file(path: str) -> dict[str, Any]:
    """A file by its size and the start of its hash; only the name of an address."""
    if '://' in path:
        return {'path': path, 'bytes': None, 'sha256': None}
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return {'path': path, 'bytes': Path(path).stat().st_size, 'sha256': digest.hexdigest()[:16]}


def _plain(value: Any) -> Any:
    """What JSON knows: undefined numbers as None, others to five decimals, what is no number as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if getattr(value, 'ndim', 0):  # of numpy or torch
        return _plain(value.tolist())
    try:
        value = float(value)
    except (TypeError, ValueError):
        return str(value)
    return round(value, 5) if math.isfinite(value) else None
