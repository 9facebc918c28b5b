"""Data sets that name what is wrong with them, and can do without it.

`GuardedDataset` builds any data set of mmdet, mmseg or mmpretrain and stands guard at the two places where data comes
in: a COCO file is checked when it is read (`coco_entries`), and each sample when the loader's process prepares it. A
good sample passes as it would without: the same steps, the same random numbers.
"""

import functools
import inspect
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset, Compose
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.registry import DATASETS as ROOT_DATASETS

from ..errors import UserError
from ..registry import DATASETS
from .classes import check_folders
from .coco_entries import check_categories, check_entries
from .examining import examine
from .faults import KINDS, BadDataError, Fault, record, stop
from .image_files import file_fault, map_fault, unreadable

__all__ = ['Guard', 'check_coco', 'guard_of', 'guarded_dataset', 'leaves']

IN_A_ROW = 100  # samples without a good one, after which it is no matter of some bad files


@DATASETS.register_module(name='GuardedDataset')
def guarded_dataset(
    dataset: dict,
    split: str,
    skip: bool = False,
    masks: bool = False,
    folder: str | None = None,
    class_folders: Sequence[str] | None = None,
    workers: int = 0,
) -> Any:
    """Builds a data set, with its wrappers, and sets a `Guard` before each of those inside.

    With `skip`, bad samples of the training data are noticed when their turn comes, and others take their place. A
    measure over substitutes would be none: data to validate or test on is read once beforehand, and its bad samples
    are no longer in it.

    Args:
        dataset: Its config.
        split: What it is for: ``'train'``, ``'val'`` or ``'test'``.
        skip: Leave out what is bad instead of stopping there.
        masks: Whether the masks of a COCO file are needed.
        folder: Where what was left out is recorded; nowhere when None.
        class_folders: Those of the training data, which an image-folder data set must have as well.
        workers: Processes that read beforehand.

    Returns:
        The data set itself.

    Raises:
        BadDataError: if the data set as a whole cannot be used, or, without `skip`, for a bad annotation.
    """
    built = ROOT_DATASETS.build(_lazy(deepcopy(dataset)))
    for leaf in leaves(built):
        if hasattr(leaf, 'prepare_data') and hasattr(leaf, 'full_init'):
            faults = _initialise(leaf, skip, masks, class_folders)
            leaf.prepare_data = Guard(leaf, split, skip, folder, faults)
            if skip and split != 'train':
                _leave_out(leaf, workers)
    if hasattr(built, 'full_init'):
        built.full_init()
    return built


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers, or the data set itself."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner == [None]:
        yield dataset
        return
    for child in inner:
        yield from leaves(child)


def guard_of(leaf: Any) -> 'Guard | None':
    """The guard of a data set; None if it has none."""
    guard = vars(leaf).get('prepare_data')
    return guard if isinstance(guard, Guard) else None


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
    """

    def __init__(self, dataset: Any, split: str, skip: bool, folder: str | None, faults: list[Fault]) -> None:
        self.dataset = dataset
        self.split = split
        self.skip = skip
        self.folder = folder
        self.faults = faults
        self.left_out: list[dict] = []
        self._recorded: set[Fault] = set()
        if skip and folder is not None and is_main_process():
            record(folder, split, [fault for fault in faults if KINDS[fault.kind].level == 'error'])

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
                record(self.folder, self.split, [fault])
            # of its own generator: the one that pictures are changed by goes on as it would
            tried = int(np.random.default_rng([index, attempt]).integers(len(self.dataset)))
        raise BadDataError(
            f'{IN_A_ROW} samples of the {self.split} data in a row cannot be used. The last one is {fault}\n'
            'Look at them all: python tools/check_dataset.py CONFIG'
        )

    def examine(self, index: int) -> tuple[Any, Fault | None]:
        """A sample and None, or None and what is wrong with it."""
        self._error = None
        self._step = None
        info = self.dataset.get_data_info(index)
        fault = self.look(info)
        if fault is not None:
            return None, fault
        try:
            return self._prepare(index, info)
        except BadDataError:
            raise
        except Exception as error:  # whatever a decoder or a step of the pipeline raises
            self._error = error
            return None, self._explain(info, error)

    def look(self, info: dict) -> Fault | None:
        """What can be said of a sample before it is read.

        Args:
            info: The sample's entry in the data set.
        """
        path = str(info.get('img_path'))
        label, classes = info.get('gt_label'), self.dataset.metainfo.get('classes')
        for number in np.atleast_1d(label).tolist() if label is not None and classes else ():
            if not 0 <= number < len(classes):
                return Fault('label', path, f'label {number}, and there are {len(classes)} classes, from 0')
        if not self._local:
            return None
        for key in ('img_path', 'seg_map_path'):
            name = info.get(key)
            if isinstance(name, str) and '://' not in name:
                fault = file_fault(name) or (map_fault(name) if key == 'seg_map_path' and self._semantic else None)
                if fault is not None:
                    return fault
        return None

    @functools.cached_property
    def _local(self) -> bool:
        """Whether names are files of this machine: another backend has its own names."""
        steps = getattr(self.dataset.pipeline, 'transforms', [])
        backends = [getattr(step, key, None) or {} for step in steps for key in ('backend_args', 'file_client_args')]
        return all(backend.get('backend', 'local') in ('local', 'disk') for backend in backends)

    @functools.cached_property
    def _semantic(self) -> bool:
        """Whether maps hold the numbers of the classes, as mmseg's do."""
        return hasattr(self.dataset, 'reduce_zero_label')

    def _prepare(self, index: int, info: dict) -> tuple[Any, Fault | None]:
        cls, pipeline = type(self.dataset), self.dataset.pipeline
        if cls.prepare_data is not BaseDataset.prepare_data or type(pipeline) is not Compose:
            return cls.prepare_data(self.dataset, index), None
        data = info
        for self._step in pipeline.transforms:
            data = self._step(data)
            if data is None:  # a step may refuse a sample: the data set draws another
                return None, None
            if type(self._step).__name__.startswith('Load'):
                fault = self._loaded(data)
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
        if labels is None:
            return None
        path = str(data.get('seg_map_path'))
        if labels.ndim != 2:
            return Fault('map format', path, f'a map of labels has one channel, this one has {labels.shape[-1]}')
        if shape is not None and labels.shape != tuple(shape[:2]):
            detail = f'is {labels.shape[1]} x {labels.shape[0]} pixels, its picture {shape[1]} x {shape[0]}'
            return Fault('map size', path, detail)
        classes = self.dataset.metainfo.get('classes')
        if self._semantic and classes:
            ignored = {255, getattr(self.dataset, 'ignore_index', 255)}
            wrong = set(np.flatnonzero(np.bincount(labels.ravel())[len(classes) :]) + len(classes)) - ignored
            if wrong:
                shift = ' after 1 is taken off each' if self.dataset.reduce_zero_label else ''
                told = ', '.join(map(str, sorted(wrong)[:5]))
                return Fault('map values', path, f'has labels {told}{shift}, and there are {len(classes)} classes')
        return None

    def _explain(self, info: dict, error: Exception) -> Fault:
        """Which file an error is about."""
        name = type(self._step).__name__ if self._step is not None else type(self.dataset).__name__
        path = str(info.get('img_path'))
        if name.startswith('Load') and info.get('seg_map_path') is not None and 'Image' not in name:
            path = str(info['seg_map_path'])
        if name.startswith('Load') and self._local:
            fault = unreadable(path)
            if fault is not None:
                return fault
        if 'failed to load image' in str(error):
            return Fault('unreadable', path, 'cannot be read: it is damaged or no image')
        reason = ' '.join(str(error).split())[:300]
        return Fault('pipeline', path, f'{name} fails on it: {type(error).__name__}: {reason}')


# --------------------------------------------------------------------------------------------------------------------
# Building


def _lazy(dataset: dict) -> dict:
    """The config of a data set, and of those inside it, that reads no annotations yet."""
    for child in [dataset.get('dataset'), *(dataset.get('datasets') or ())]:
        if isinstance(child, dict):
            _lazy(child)
    with ROOT_DATASETS.switch_scope_and_registry(None) as registry:
        cls = dataset['type'] if inspect.isclass(dataset['type']) else registry.get(dataset['type'])
    parameters = inspect.signature(cls).parameters.values() if cls is not None else ()
    if any(parameter.name == 'lazy_init' or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        dataset['lazy_init'] = True
    return dataset


def _leave_out(leaf: Any, workers: int) -> None:
    """Takes the samples that cannot be used out of a data set. One process of a distributed run looks for them."""
    guard = leaf.prepare_data
    answer = [None]
    if is_main_process():
        answer = [[faults[0] if faults else None for faults in examine(guard, workers=workers, notes=False)]]
    broadcast_object_list(answer)
    bad = {index: fault for index, fault in enumerate(answer[0]) if fault is not None}
    if not bad:
        return
    if is_main_process() and guard.folder is not None:
        record(guard.folder, guard.split, bad.values())
    if len(bad) == len(leaf):
        raise BadDataError(f'the {guard.split} data has no sample that can be used. The first one is {bad[0]}')
    guard.left_out = [leaf.get_data_info(index) for index in bad]
    leaf.get_subset_([index for index in range(len(leaf)) if index not in bad])


def _initialise(leaf: Any, skip: bool, masks: bool, class_folders: Sequence[str] | None) -> list[Fault]:
    """Reads the annotations of a data set, and answers with what is wrong with them."""
    where = getattr(leaf, 'ann_file', '') or getattr(leaf, 'data_prefix', '')
    faults: list[Fault] = []
    api = getattr(leaf, 'COCOAPI', None)
    if api is not None and api.__name__ != 'COCOPanoptic':
        leaf.COCOAPI = _checking(api, leaf.ann_file, leaf.metainfo.get('classes'), skip, masks, faults)
    check_folders(leaf, class_folders)
    try:
        leaf.full_init()
    except UserError:
        raise
    except FileNotFoundError as error:
        raise BadDataError(f'{error.filename!r}: the data set needs it, and there is no such file.') from error
    except Exception as error:
        if not leaf.data_list:
            raise _no_samples(leaf, where, error) from error
        raise _unusable(where, error) from error
    finally:
        vars(leaf).pop('COCOAPI', None)
    if len(leaf) == 0:  # a sampler without end would wait for the first sample for ever
        raise _no_samples(leaf, where)
    return faults


def _unusable(where: Any, error: Exception) -> BadDataError:
    return BadDataError(f'{where!r}: cannot be read as annotations: {type(error).__name__}: {str(error)[:300]}')


def _no_samples(leaf: Any, where: Any, error: Exception | None = None) -> BadDataError:
    if error is not None and 'concatenate' not in str(error):
        return _unusable(where, error)
    suffix = f' File names end in {leaf.img_suffix!r}.' if hasattr(leaf, 'img_suffix') else ''
    return BadDataError(f'{where!r}: the data set has no samples.{suffix} {KINDS["no samples"].remedy}', 'no samples')


def _checking(api: type, path: str, classes: Any, skip: bool, masks: bool, faults: list[Fault]) -> type:
    """pycocotools' reader, as mmdet has it, that checks what it read before it is indexed."""

    def create_index(self: Any) -> None:
        faults.extend(check_coco(self, path, classes, skip, masks))
        api.createIndex(self)

    return type(api.__name__, (api,), {'createIndex': create_index})


def check_coco(coco: Any, path: str, classes: Any, skip: bool, masks: bool) -> list[Fault]:
    """Checks the content of a COCO reader and takes out of it what is bad.

    Raises:
        BadDataError: for what `check_categories` refuses; without `skip`, for any error.
    """
    check_categories(coco.dataset, path, classes)
    faults, data = check_entries(coco.dataset, path, masks)
    errors = [fault for fault in faults if KINDS[fault.kind].level == 'error']
    if errors and not skip:
        raise stop(errors)
    coco.dataset = data
    return faults
