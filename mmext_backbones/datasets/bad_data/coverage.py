"""What the data of a split lacks as a whole: objects to learn, classes that no object or pixel has, iterations."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...config.editing import type_name, walk
from ...utils.errors import few
from ..metainfo import classes_of
from .guard import Guard, guard_of
from .kinds import BadDataError, Fault
from .scan import random_state_kept, spread

__all__ = ['Labels', 'check_iterations', 'count_labels', 'count_maps', 'lacking', 'lacking_pixels', 'weight_faults']

ENTRIES = 5000  # samples whose labels are looked at before a run: half a second
MAPS = 32  # maps of labels that are read before a run: a second
FEW_CLASSES = 8  # of which 32 maps should show each
IGNORED = 255
# of a test split nothing may be known
NOTHING = {'train': ('nothing to learn', 'learned from'), 'val': ('nothing to measure', 'measured')}


class Labels(NamedTuple):
    """Labels of a data set that were counted.

    Attributes:
        classes: Objects or images of each class, by number.
        ignored: Objects that no loss counts (crowds).
        looked: Samples that were looked at.
        whole: Whether these are all.
    """

    classes: Counter
    ignored: int
    looked: int
    whole: bool


def count_labels(leaf: Any, most: int | None = ENTRIES) -> Labels | None:
    """Counts the labels that the entries of a data set have; None if they have none, as those of segmentation.

    Args:
        leaf: A data set of samples.
        most: Samples to look at, evenly spread; all of them when None.
    """
    if guard_of(leaf) is None:  # of a kind of its own
        return None
    classes, ignored, known = Counter(), 0, False
    indices = spread(len(leaf), most or len(leaf))
    for index in indices:
        labels = _labels(leaf.get_data_info(index))
        known |= labels is not None
        for label, counts in labels or ():
            ignored += not counts
            classes[label] += bool(counts)
    return Labels(classes, ignored, len(indices), len(indices) == len(leaf)) if known else None


def _labels(info: dict) -> Iterator[tuple[Any, bool]] | None:
    """(label, whether it is learned) of each object of a sample; None if the entry tells of none."""
    if info.get('segments_info'):
        return ((each.get('category'), not each.get('iscrowd')) for each in info['segments_info'])
    if isinstance(info.get('instances'), list):
        return ((each.get('bbox_label'), not each.get('ignore_flag')) for each in info['instances'])
    if info.get('gt_label') is not None:
        return ((label, True) for label in np.atleast_1d(info['gt_label']).tolist())
    return None


def lacking(leaves: Sequence[Any], found: Sequence[Labels | None], split: str) -> list[Fault]:
    """What the objects or the images of a split do not have.

    Args:
        leaves: The data sets of samples of the split.
        found: What `count_labels` found of each; None where that is not known, about which nothing can be said then.
        split: Its name.
    """
    if not leaves or any(each is None for each in found):
        return []
    where = few([str(getattr(leaf, 'ann_file', '') or getattr(leaf, 'data_prefix', '')) for leaf in leaves])
    total = sum((each.classes for each in found), Counter())
    looked, ignored = sum(each.looked for each in found), sum(each.ignored for each in found)
    objects = any('gt_label' not in leaf.get_data_info(0) for leaf in leaves)
    if objects and not total.total():
        why = f'all {ignored} boxes are crowds (iscrowd: 1)' if ignored else 'no box is left'
        kind, what = NOTHING.get(split, ('', ''))
        return [Fault(kind, where, f'no object of {looked} samples is {what}: {why}')] if kind else []
    classes = [classes_of(leaf) for leaf in leaves]
    if not all(each.whole for each in found) or any(each != classes[0] for each in classes) or not classes[0]:
        return []
    absent = [name for number, name in enumerate(classes[0]) if not total[number]]
    if not absent:
        return []
    what = 'object' if objects else 'image'
    return [Fault('class without objects', where, _absent(absent, classes[0], f'no {what} of the {split} data'))]


def _absent(absent: Sequence[str], classes: Sequence[str], nothing: str) -> str:
    number = 'class' if len(absent) == 1 else f'{len(absent)} of {len(classes)} classes'
    return f'{nothing} is of {number} {few(list(absent))}'


def count_maps(leaf: Any, most: int = MAPS) -> list[np.ndarray]:
    """Pixels of each label, 0 to 255, in some maps of a data set for segmentation; none for any other."""
    guard = guard_of(leaf)
    if guard is None or not hasattr(leaf, 'reduce_zero_label') or 'seg_map_path' not in leaf.get_data_info(0):
        return []
    with random_state_kept():
        found = [_read_map(guard, index) for index in spread(len(leaf), most)]
    return [counts for counts in found if counts is not None]


def _read_map(guard: Guard, index: int) -> np.ndarray | None:
    try:
        return guard.count_map(index)
    except Exception:  # told when its turn comes
        return None


def lacking_pixels(leaf: Any, found: Sequence[np.ndarray], split: str) -> list[Fault]:
    """What the maps of a data set for segmentation do not have.

    Args:
        leaf: The data set of samples.
        found: Pixels of each label of the maps that were looked at.
        split: What it is for.
    """
    classes = classes_of(leaf)
    if not found or not classes:
        return []
    where = str(leaf.data_prefix.get('seg_map_path', ''))
    total = np.sum(found, axis=0)
    with_ignored = sum(bool(counts[IGNORED]) for counts in found)
    share = f'{100 * total[IGNORED] / total.sum():.0f} % of their pixels'
    ignored = f'{IGNORED}, which is ignored, is in {with_ignored} of {len(found)} maps ({share})'
    if leaf.reduce_zero_label:
        ignored += '; 0 is made 255 (reduce_zero_label=True)'
    absent = [name for number, name in enumerate(classes) if not total[number]]
    faults = []
    if absent and (len(found) >= len(leaf) or len(classes) <= FEW_CLASSES):
        detail = _absent(absent, classes, f'no pixel of the {len(found)} maps of the {split} data that were read')
        faults.append(Fault('class without pixels', where, f'{detail}. {ignored}'))
    if 2 * with_ignored > len(found):
        faults.append(Fault('ignored pixels', where, ignored))
    return faults


def weight_faults(cfg: dict, found: Sequence[np.ndarray]) -> list[Fault]:
    """Losses of mmseg that weigh classes and would meet pixels that are ignored, which they have no weight for.

    Args:
        cfg: The whole config.
        found: Pixels of each label of the maps that were looked at.
    """
    padded = any(
        node.get('size') or node.get('size_divisor') for _, node in walk(cfg['model'].get('data_preprocessor'))
    )
    if not found or not (padded or any(counts[IGNORED] for counts in found)):
        return []
    return [
        Fault('class weights', f'model.{path}', f'has a class_weight, and pixels of {IGNORED} are ignored')
        for path, loss in walk(cfg['model'])
        if type_name(loss) == 'CrossEntropyLoss'
        and re.search(r'(decode|auxiliary)_head', path)
        and loss.get('class_weight') is not None
        and loss.get('reduction', 'mean') == 'mean'
        and not (loss.get('use_sigmoid') or loss.get('use_mask'))
    ]


def check_iterations(loop: Any, split: str) -> None:
    """A loop over a loader must have something to go over.

    Raises:
        BadDataError: if there is no batch: the data is smaller than one, and what is left is dropped.
    """
    loader = loop.dataloader
    try:
        batches, samples = len(loader), len(loader.dataset)
    except TypeError:  # a stream
        return
    sampler = type(getattr(loader, 'sampler', None)).__name__
    endless = 'Infinite' in sampler or 'MultiSource' in sampler
    if batches == 0 and samples and not endless:
        raise BadDataError(
            f'the {split} data has {samples} samples, and {split}_dataloader drops what does not fill a batch of '
            f'{loader.batch_size or "several"}: not one iteration would be run.\nSet --cfg-options '
            f'{split}_dataloader.drop_last=False, or a batch_size of at most {samples}.',
            'no iteration',
        )
