"""Checks that the data and the model have the same classes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...config.editing import walk
from ...utils.errors import few
from .kinds import BadDataError

__all__ = ['check_folders', 'check_num_classes', 'class_folders']


def check_num_classes(cfg: dict, classes: Sequence[str] | None, split: str) -> None:
    """Every part of the model that has a number of classes, against the classes of a data set.

    Args:
        cfg: The whole config.
        classes: Of the data set; None if it has none, which nothing can disagree with.
        split: ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        BadDataError: saying what to set.
    """
    model = cfg['model']
    nodes = list(walk(model, 'model'))
    panoptic = any(node.get('num_stuff_classes') for _, node in nodes)  # its heads share the classes
    if not classes or panoptic or any(re.search(r'language_model|text_encoder', path) for path, _ in nodes):
        return
    if 'data_preprocessor' not in model:
        nodes += walk(cfg.get('data_preprocessor'), 'data_preprocessor')
    mixing = bool((model.get('train_cfg') or {}).get('augments'))
    wrong = {
        f'{path}.num_classes'.replace('model.module.', 'model.'): node['num_classes']
        for path, node in nodes
        if _counts_classes(path, node, mixing) and node['num_classes'] != len(classes)
    }
    if not wrong:
        return
    options = ' '.join(f'{path}={len(classes)}' for path in wrong)
    told = ', '.join(f'{path} is {number}' for path, number in wrong.items())
    raise BadDataError(
        f'the {split} data has {len(classes)} classes ({few(classes)}), and {told}.\n'
        f'If the data is right, set --cfg-options {options}\n'
        f'If the model is right, name its classes in the config: {split}_dataloader.dataset.metainfo.classes',
        'classes',
    )


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
    where, classes = dataset.img_prefix, dataset.metainfo.get('classes')
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
