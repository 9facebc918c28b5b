"""Per-sample validation in the DataLoader worker."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, Compose
from mmengine.dist import is_main_process

from ..metainfo import classes_of
from .images import file_fault, map_fault, unreadable
from .kinds import KINDS, BadDataError, Fault, log_faults, stop
from .steps import failed_step, flat, is_librarys, loads, nested, reads

__all__ = ['Guard', 'guard_of']

IN_A_ROW = 100  # samples without a good one, after which it is no matter of some bad files


class Guard:
    """Prepares the samples of one data set, as its `prepare_data` would.

    Where a sample is bad, the error names its file; or, with `skip`, another sample takes its place, the same one each
    time and in each process.

    Args:
        dataset: A data set of mmengine's kind, initialised.
        split: ``'train'``, ``'val'`` or ``'test'``.
        skip: Put another sample in the place of a bad one.
        folder: Where bad samples are recorded; nowhere when None.
        faults: What its annotation file had.

    Attributes:
        faults: As given.
        left_out: Entries of samples that were taken out of the data set beforehand.
        counting: Whether the labels of maps are counted.
        counts: Pixels of each label, 0 to 255, of the map that was read last; None before.
    """

    def __init__(self, dataset: Any, split: str, skip: bool, folder: str | None, faults: list[Fault]) -> None:
        self.dataset = dataset
        self.split = split
        self.skip = skip
        self.folder = folder
        self.faults = faults
        self.left_out: list[dict] = []
        self.counting = False
        self.counts: np.ndarray | None = None
        self._recorded: set[Fault] = set()
        if skip and folder is not None and is_main_process():
            log_faults(folder, split, [fault for fault in faults if KINDS[fault.kind].level == 'error'])

    def __call__(self, index: int) -> Any:
        tried = index
        for attempt in range(IN_A_ROW):
            data, fault = self.examine(tried)
            if fault is None:
                return data
            if not self.skip:
                raise stop([fault]) from self._error
            if self.folder is not None and fault not in self._recorded:
                self._recorded.add(fault)
                log_faults(self.folder, self.split, [fault])
            tried = self._another(index, attempt)
        raise BadDataError(
            f'{IN_A_ROW} samples of the {self.split} data in a row cannot be used. The last one is {fault}\n'
            'Look at them all: python tools/check_dataset.py CONFIG'
        )

    def _another(self, index: int | tuple[int, int], attempt: int) -> int | tuple[int, int]:
        """What is taken in place of a sample, drawn by a generator of its own: augmentation goes on as it would."""
        if not isinstance(index, tuple):
            return int(np.random.default_rng([index, attempt]).integers(len(self.dataset)))
        generator = np.random.default_rng([*index, attempt])
        video = int(generator.integers(len(self.dataset)))
        return video, int(generator.integers(self._info((video, 0)).get('video_length', 1)))

    def _info(self, index: int | tuple[int, int]) -> dict:
        """The entry of a sample; that of the whole video for (video, frame), as mmdet's samplers of videos draw it."""
        return self.dataset.get_data_info(index[0] if isinstance(index, tuple) else index)

    def examine(self, index: int | tuple[int, int]) -> tuple[Any, Fault | None]:
        """A sample and None, or None and what is wrong with it."""
        self._error = None
        self._step = None
        self.counts = None
        info = self._info(index)
        fault = _quietly(self.look, info)
        if fault is not None:
            return None, fault
        try:
            return self._prepare(index, info)
        except BadDataError:
            raise
        except Exception as error:  # whatever a decoder or a step of the pipeline raises
            self._error = error
            return None, self._explain(info, error)

    def probe(self) -> None:
        """Looks at the first sample: what fails on it is a data set that this class does not understand."""
        self.look(self.dataset.get_data_info(0))

    def count_map(self, index: int) -> np.ndarray | None:
        """Pixels of each label, 0 to 255, of a sample's map; None if there is none that can be read."""
        self.counting, self.counts = True, None
        try:
            data = self.dataset.get_data_info(index)
            for step in flat(self.dataset.pipeline.transforms):
                self._step, data = step, step(data)
                if data is None or self._loaded(data) is not None or self.counts is not None:
                    break
        finally:
            self.counting = False
        return self.counts

    def look(self, info: dict) -> Fault | None:
        """What can be said of a sample before it is read.

        Args:
            info: The sample's entry in the data set.
        """
        path = str(info.get('img_path'))
        label, classes = info.get('gt_label'), self._classes
        for number in np.atleast_1d(label).tolist() if label is not None and classes else ():
            if not 0 <= number < len(classes):
                return Fault('label', path, f'label {number}, and there are {len(classes)} classes, from 0')
        for key in sorted(self._reads):
            name = info.get(key)
            if isinstance(name, str) and '://' not in name:
                fault = file_fault(name) or (map_fault(name) if key == 'seg_map_path' and self._semantic else None)
                if fault is not None:
                    return fault
        return None

    @functools.cached_property
    def _classes(self) -> Sequence[str] | None:
        """Kept, because `metainfo` is copied at every look."""
        return classes_of(self.dataset)

    @property
    def _steps(self) -> Any:
        return getattr(self.dataset, 'pipeline', None)

    @functools.cached_property
    def _local(self) -> bool:
        """Whether names are files of this machine: another backend has its own names."""
        keys = ('backend_args', 'file_client_args')
        backends = [getattr(step, key, None) or {} for step in nested(self._steps) for key in keys]
        return all(backend.get('backend', 'local') in ('local', 'disk') for backend in backends)

    @functools.cached_property
    def _reads(self) -> set[str]:
        return reads(self._steps) if self._local else set()

    @functools.cached_property
    def _semantic(self) -> bool:
        """Whether maps hold the numbers of the classes, as mmseg's do."""
        return hasattr(self.dataset, 'reduce_zero_label')

    def _prepare(self, index: int, info: dict) -> tuple[Any, Fault | None]:
        cls, pipeline = type(self.dataset), self._steps
        if cls.prepare_data is not BaseDataset.prepare_data or type(pipeline) is not Compose:
            return cls.prepare_data(self.dataset, index), None
        data = info
        for self._step in flat(pipeline.transforms):
            data = self._step(data)
            if data is None:  # a step may refuse a sample: the data set draws another
                return None, None
            if loads(self._step) and isinstance(data, dict):
                fault = _quietly(self._loaded, data)
                if fault is not None:
                    return None, fault
        return data, None

    def _loaded(self, data: dict) -> Fault | None:
        """What can be said of a sample that was just read."""
        shape, path = data.get('ori_shape'), str(data.get('img_path'))
        size = (data.get('height'), data.get('width'))
        if shape is not None and None not in size and tuple(shape[:2]) != size:
            turned = ': the two are exchanged, look for an EXIF tag' if tuple(shape[1::-1]) == size else ''
            detail = f'is {shape[1]} x {shape[0]} pixels, and its annotations are for {size[1]} x {size[0]}{turned}'
            return Fault('image size', path, detail)
        labels = data.get('gt_seg_map')
        if not isinstance(labels, np.ndarray):
            return None
        path = str(data.get('seg_map_path'))
        if labels.ndim != 2 and not is_librarys(self._step):
            return None  # a person's own step may load what a head of their own learns
        if labels.ndim != 2:
            return Fault('map format', path, f'a map of labels has one channel, this one has {labels.shape[-1]}')
        if shape is not None and labels.shape != tuple(shape[:2]):
            detail = f'is {labels.shape[1]} x {labels.shape[0]} pixels, its picture {shape[1]} x {shape[0]}'
            return Fault('map size', path, detail)
        if self.counting:
            self.counts = np.bincount(labels.ravel() & 255, minlength=256)
        classes = self._classes
        if self._semantic and classes:
            odd = (labels >= len(classes)) & (labels != 255)
            wrong = set(np.unique(labels[odd])) - {getattr(self.dataset, 'ignore_index', 255)} if odd.any() else ()
            if wrong:
                shift = ' after 1 is taken off each' if self.dataset.reduce_zero_label else ''
                told = ', '.join(map(str, sorted(wrong)[:5]))
                return Fault('map values', path, f'has labels {told}{shift}, and there are {len(classes)} classes')
        return None

    def _explain(self, info: dict, error: Exception) -> Fault:
        """Which file an error is about."""
        step = failed_step(error, self._steps) or self._step
        name = type(self.dataset if step is None else step).__name__
        key = 'img_path'
        if name.startswith('Load') and info.get('seg_map_path') is not None and 'Image' not in name:
            key = 'seg_map_path'
        path = str(info.get(key))
        if name.startswith('Load') and self._local and (key in self._reads or os.path.isfile(path)):
            fault = file_fault(path) or unreadable(path)
            if fault is not None:
                return fault
        if 'failed to load image' in str(error):
            return Fault('unreadable', path, 'cannot be read: it is damaged or no image')
        reason = ' '.join(str(error).split())[:300]
        return Fault('pipeline', path, f'{name} fails on it: {type(error).__name__}: {reason}')


def _quietly(look: Callable[[dict], Fault | None], entry: dict) -> Fault | None:
    """What a look finds; nothing where it fails on an entry of another kind, which is left to the pipeline."""
    try:
        return look(entry)
    except Exception:
        return None


def guard_of(leaf: Any) -> Guard | None:
    """The guard of a data set; None if it has none."""
    guard = getattr(leaf, '__dict__', {}).get('prepare_data')
    return guard if isinstance(guard, Guard) else None
