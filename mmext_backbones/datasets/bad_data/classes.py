"""Checks that the data and the model have the same classes."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ...config.editing import walk
from ...utils.errors import few
from ..metainfo import classes_of, metainfo_of
from .kinds import BadDataError

__all__ = ['check_classes', 'check_folders', 'check_num_classes', 'class_folders']


def check_classes(cfg: dict, leaves: Iterable[Any], split: str) -> None:
    """The classes of the data sets of a split against the model; of several, those of the one that has most.

    Args:
        cfg: The whole config.
        leaves: The data sets of samples.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        BadDataError: as `check_num_classes`.
    """
    known = [leaf for leaf in leaves if classes_of(leaf) and not _is_video(leaf)]
    if known:
        leaf = max(known, key=lambda leaf: len(classes_of(leaf)))
        parts = [len(metainfo_of(leaf).get(f'{part}_classes') or ()) for part in ('thing', 'stuff')]
        classes = classes_of(leaf)
        check_num_classes(cfg, classes, split, tuple(parts) if sum(parts) == len(classes) else None)


def _is_video(leaf: Any) -> bool:
    """Whether a data set is of mmdet's videos: MOT's has 13 classes, and its trackers are of one."""
    return any(cls.__name__ == 'BaseVideoDataset' for cls in type(leaf).__mro__)


def check_num_classes(
    cfg: dict, classes: Sequence[str] | None, split: str, parts: tuple[int, int] | None = None
) -> None:
    """Every part of the model that has a number of classes, under any name, against the classes of a data set.

    Args:
        cfg: The whole config.
        classes: Of the data set; None if it has none, which nothing can disagree with.
        split: ``'train'``, ``'val'`` or ``'test'``.
        parts: How many of the classes are things, and how many stuff, where the data tells.

    Raises:
        BadDataError: saying what to set.
    """
    model = cfg['model']
    nodes = list(walk(model, 'model'))
    if not classes or any(re.search(r'language_model|text_encoder', path) for path, _ in nodes):
        return
    if 'data_preprocessor' not in model:
        nodes += walk(cfg.get('data_preprocessor'), 'data_preprocessor')
    mixing = bool((model.get('train_cfg') or {}).get('augments'))
    panoptic = any(node.get('num_stuff_classes') for _, node in nodes)
    wrong: dict[str, tuple[Any, Any]] = {}
    for path, node in nodes:
        if isinstance(node.get('num_things_classes'), int):
            found = _wrong_parts(node, len(classes), parts)
        elif _counts_classes(path, node, mixing) and not (panoptic and parts is None):
            found = _wrong_numbers(path, node, parts[0] if panoptic else len(classes))
        else:
            continue
        wrong |= {f'{path}.{key}'.replace('model.module.', 'model.'): pair for key, pair in found.items()}
    if not wrong:
        return
    options = ' '.join(f'{path}={right}'.replace(' ', '') for path, (_, right) in wrong.items())
    told = ', '.join(f'{path} is {number}' for path, (number, _) in wrong.items())
    raise BadDataError(
        f'the {split} data has {len(classes)} classes ({few(classes)}), and {told}.\n'
        f'If the data is right, set --cfg-options {options}\n'
        f'If the model is right, name its classes in the config: {split}_dataloader.dataset.metainfo.classes',
        'classes',
    )


def _wrong_numbers(path: str, head: dict, number: int) -> dict[str, tuple[Any, Any]]:
    """By key: what a head with a number of classes has, and what is right."""
    old, wrong = head['num_classes'], {}
    if old != number:
        wrong['num_classes'] = (old, number)
    scores = re.search(r'(decode|auxiliary)_head(\.\d+)?$', path) and 'num_queries' not in head  # else, of masks
    out = head.get('out_channels') if scores else None
    if isinstance(out, int) and out != number and (out, number) != (1, 2):  # one channel and a threshold
        wrong['out_channels'] = (out, number)
    return wrong | _wrong_weights(head, old, number)


def _wrong_parts(head: dict, number: int, parts: tuple[int, int] | None) -> dict[str, tuple[Any, Any]]:
    """The same of a head that counts things and stuff. Where the data does not tell them apart, all are things, which
    a model for both can learn."""
    old = {key: head[key] for key in ('num_things_classes', 'num_stuff_classes') if isinstance(head.get(key), int)}
    stuff = old.get('num_stuff_classes', 0)
    if parts is None and old['num_things_classes'] in (number, number - stuff):
        parts = (old['num_things_classes'], stuff)
    right = dict(zip(('num_things_classes', 'num_stuff_classes'), parts or (number, stuff), strict=True))
    wrong = {key: (old[key], right[key]) for key in old if old[key] != right[key]}
    return wrong | _wrong_weights(head, old['num_things_classes'] + stuff, sum(right.values()))


def _wrong_weights(head: dict, old: int, number: int) -> dict[str, tuple[Any, Any]]:
    """Lists of a weight a class in the losses of a head; many have one more, for the background or for no object.

    Args:
        head: Its config.
        old: The number of classes that it has.
        number: The right one.
    """
    wrong = {}
    for path, loss in walk(head):
        weights = loss.get('class_weight')
        if not re.fullmatch(r'loss_\w+(\.\d+)?', path) or not isinstance(weights, (list, tuple)) or not weights:
            continue
        if len(weights) not in (number, number + 1, head.get('out_channels')):
            right = [1.0] * number + list(weights[old : old + 1])
            wrong[f'{path}.class_weight'] = (f'a list of {len(weights)}', right)
    return wrong


def _counts_classes(path: str, node: dict, mixing: bool) -> bool:
    """Whether `num_classes` is the data's: a first stage knows objects only, an STDC edge head edges, and mmpretrain
    reads that of a preprocessor only where labels become scores, as for mixed pictures."""
    number = node.get('num_classes')
    if not isinstance(number, int) or number <= 0:
        return False
    if path.endswith('data_preprocessor'):
        return bool(mixing or node.get('to_onehot') or node.get('batch_augments'))
    elsewhere = r'\.(backbone|rpn_head|semantic_head)(\.|$)|_cfg(\.|$)'
    return not re.search(elsewhere, path) and node.get('type') != 'STDCHead'


def class_folders(dataset: Any) -> list[str] | None:
    """The folders that an image-folder data set takes for classes, in order; None for any other data set."""
    if getattr(dataset, 'ann_file', None) or not getattr(dataset, 'with_label', False):
        return None
    prefix = getattr(dataset, 'img_prefix', None)
    if not isinstance(prefix, str) or '://' in prefix or not Path(prefix).is_dir():
        return None
    return sorted(path.name for path in Path(prefix).iterdir() if path.is_dir())


def check_folders(dataset: Any, others: Sequence[str] | None = None) -> None:
    """The folders of an image-folder data set against its classes, and against the folders of another split.

    Args:
        dataset: Built, but not initialised.
        others: The class folders of the training data.

    Raises:
        BadDataError: saying what to set.
    """
    folders = class_folders(dataset)
    if folders is None:
        return
    where, classes = dataset.img_prefix, classes_of(dataset)
    if classes is not None and len(classes) != len(folders):
        raise BadDataError(
            f'{where!r} has {len(folders)} class folders ({few(folders)}), and the config names {len(classes)} '
            f'classes.\nSet metainfo=dict(classes=[...]) of every data set in the config to the {len(folders)} names, '
            f'in the alphabetical order of their folders, and model.head.num_classes={len(folders)}.',
            'classes',
        )
    if classes is not None and set(classes) == set(folders) and list(classes) != folders:
        raise BadDataError(
            f'{where!r}: classes are numbered in the alphabetical order of their folders ({few(folders)}), and the '
            f'config has another ({few(classes)}). Write them in that order.',
            'classes',
        )
    if others is not None and folders != list(others):
        odd = sorted(set(folders) ^ set(others))
        raise BadDataError(
            f'{where!r} has other class folders than the training data ({few(odd)}): classes are numbered by their '
            'folders, so each split needs all of them. An empty folder will do.',
            'classes',
        )
