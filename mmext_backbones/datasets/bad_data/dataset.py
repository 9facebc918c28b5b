"""A data set around another that names what is wrong with its samples, and can leave them out.

`GuardedDataset` builds any data set of mmdet, mmseg or mmpretrain and stands guard at the two places where data comes
in: a COCO file is checked when it is read (`coco_entries`), and each sample when the loader's process prepares it
(`guard`). A good sample passes as it would without: the same steps, the same random numbers.
"""

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import Registry
from torch.utils.data import Dataset

from ...registry import DATASETS
from ...utils.attempts import attempt
from ...utils.errors import UserError
from ..metainfo import classes_of
from .classes import check_folders
from .coco import check_categories, check_entries
from .guard import Guard, guard_of
from .kinds import KINDS, BadDataError, Fault, log_faults, stop
from .mixing import guard_mixing
from .scan import examine

__all__ = ['checked_annotations', 'class_of', 'guarded_dataset', 'inner_datasets', 'parts']


@DATASETS.register_module(name='GuardedDataset')
def guarded_dataset(
    dataset: dict,
    split: str,
    skip: bool = False,
    masks: bool = False,
    folder: str | None = None,
    class_folders: Sequence[str] | None = None,
    workers: int = 0,
    whole: bool = False,
) -> Any:
    """Builds a data set, with its wrappers, and sets a `Guard` before each of those inside.

    Wrappers are built by their own libraries, in the order and with the arguments of the config: each finds the data
    sets inside of it read, as it does without guards.

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
        whole: Read nothing beforehand, and leave no sample out: for those who read all of them.

    Returns:
        The data set itself.

    Raises:
        BadDataError: if the data set as a whole cannot be used, or, without `skip`, for a bad annotation.
    """
    options = {
        'split': split,
        'skip': skip,
        'masks': masks,
        'folder': folder,
        'class_folders': class_folders,
        'workers': workers,
        'whole': whole,
    }
    inside = attempt('the check of the data sets inside of wrappers', _guarded_children, dataset, options, default={})
    if inside:
        built = ROOT_DATASETS.build({**deepcopy(dataset), **inside})
        attempt('the check of mixed samples', guard_mixing, built, split, skip, folder)
    else:
        built = _guarded_leaf(dataset, split, skip, masks, folder, class_folders)
        if skip and split != 'train' and not whole and guard_of(built) is not None:
            _leave_out(built, workers)
    if hasattr(built, 'full_init'):
        built.full_init()
    return built


def parts(dataset: Any) -> Iterator[Any]:
    """A data set, and every one inside of it, outermost first."""
    yield dataset
    for child in _children(dataset):
        yield from parts(child)


def inner_datasets(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers, or the data set itself."""
    for part in parts(dataset):
        if not _children(part):
            yield part


def _children(dataset: Any) -> list[Any]:
    """The data sets that a wrapper holds, under whatever name; none for a data set of samples."""
    if isinstance(dataset, BaseDataset):
        return []
    held = [getattr(dataset, 'dataset', None), getattr(dataset, 'datasets', None)]
    for found in (held, list(getattr(dataset, '__dict__', {}).values())):
        flat = [each for item in found for each in (item if isinstance(item, (list, tuple)) else [item])]
        flat = [each for each in flat if hasattr(each, 'metainfo') or isinstance(each, Dataset)]
        if flat:
            return flat
    return []


def _guarded_children(dataset: dict, options: dict) -> dict:
    """The entries of a wrapper's config that hold data sets, each of which is guarded; empty for no wrapper."""

    def guarded(value: Any) -> Any:
        if isinstance(value, dict) and 'type' in value and (key in ('dataset', 'datasets') or _is_dataset(value)):
            return {'type': 'mmext_backbones.GuardedDataset', 'dataset': value, **options}
        return value

    inside = {}
    for key, value in dataset.items():
        if key != 'pipeline':
            several = isinstance(value, (list, tuple))
            new = [guarded(each) for each in value] if several else guarded(value)
            if any(a is not b for a, b in zip(new, value, strict=True)) if several else new is not value:
                inside[key] = new
    return inside


def _is_dataset(config: dict) -> bool:
    cls = class_of(config)
    return inspect.isclass(cls) and issubclass(cls, BaseDataset)


def class_of(config: dict, registry: Registry = ROOT_DATASETS) -> Any:
    """The class or the function that a config names; None if nobody knows it."""
    if not isinstance(config['type'], str):
        return config['type']
    with registry.switch_scope_and_registry(config.get('_scope_')) as known:
        return known.get(config['type'])


def _guarded_leaf(
    config: dict, split: str, skip: bool, masks: bool, folder: str | None, class_folders: Sequence[str] | None
) -> Any:
    """A data set of samples, its annotations read and checked; as its library builds it, if it is of another kind."""
    lazy = attempt('the check of annotations', _lazy, config)
    leaf = ROOT_DATASETS.build(deepcopy(config)) if lazy is None else lazy
    faults: list[Fault] = []
    if lazy is not None:
        faults = _initialise(leaf, skip, masks, class_folders)
    if isinstance(leaf, BaseDataset):
        guard = Guard(leaf, split, skip, folder, faults)
        if attempt('the check of samples', lambda: guard.probe() or True):
            leaf.prepare_data = guard
    return leaf


def _lazy(config: dict) -> Any:
    """A data set of samples that has read no annotations yet; None if its class cannot wait."""
    if not _is_dataset(config):
        return None
    parameters = inspect.signature(class_of(config)).parameters.values()
    if not any(parameter.name == 'lazy_init' or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    try:
        leaf = ROOT_DATASETS.build({**deepcopy(config), 'lazy_init': True})
    except Exception:  # it may look at its samples as it is built; a mistake of the config is found again
        return None
    return None if getattr(leaf, '_fully_initialized', True) else leaf


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
        log_faults(guard.folder, guard.split, bad.values())
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
        leaf.COCOAPI = _checking(api, leaf, skip, masks, faults)
    attempt('the check of class folders', check_folders, leaf, class_folders)
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


def _checking(api: type, leaf: Any, skip: bool, masks: bool, faults: list[Fault]) -> type:
    """pycocotools' reader, as mmdet has it, that checks what it read before it is indexed."""
    path, classes = leaf.ann_file, classes_of(leaf)
    ordered = type(leaf).load_data_list.__qualname__.startswith('CocoDataset.')  # others sort the categories

    def create_index(self: Any) -> None:
        check = (_check_coco, self, path, classes, ordered, skip, masks)
        faults.extend(attempt('the check of annotations', *check, default=()))
        api.createIndex(self)

    return type(api.__name__, (api,), {'createIndex': create_index})


@contextlib.contextmanager
def checked_annotations(skip: bool, masks: bool) -> Iterator[None]:
    """Checks each COCO file that is read within, whoever reads it: COCO's metric has no place for a reader."""
    try:
        from pycocotools.coco import COCO
    except ImportError:  # then nothing reads one
        yield
        return
    create_index = COCO.createIndex

    def checked(self: Any) -> None:
        if self.dataset:
            name = 'the annotation file of the evaluator'
            attempt('the check of annotations', _check_coco, self, name, None, False, skip, masks)
        create_index(self)

    COCO.createIndex = checked
    try:
        yield
    finally:
        COCO.createIndex = create_index


def _check_coco(coco: Any, path: str, classes: Any, ordered: bool, skip: bool, masks: bool) -> list[Fault]:
    """Checks the content of a COCO reader and takes out of it what is bad.

    Raises:
        BadDataError: for what `check_categories` refuses; without `skip`, for any error.
    """
    lacking = check_categories(coco.dataset, path, classes, ordered)
    faults, data = check_entries(coco.dataset, path, masks)
    errors = [fault for fault in faults if KINDS[fault.kind].level == 'error']
    if errors and not skip:
        raise stop(errors)
    coco.dataset = data
    return lacking + faults
