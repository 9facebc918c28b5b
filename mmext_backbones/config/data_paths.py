"""Checks that the files which a config names as data exist."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.errors import UserError
from .editing import type_name, walk

MAPS = ('seg', 'depth', 'panoptic')  # keys of data_prefix
FETCHED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')  # mmpretrain's


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Looks for the data of some splits before anything is built.

    Raises:
        UserError: naming what is missing and where it is expected.
    """
    missing = []
    for split in splits:
        for source in (f'{split}_dataloader', f'{split}_evaluator'):
            for path in _paths(cfg.get(source), cfg.get('default_scope')):
                if not path.exists() and path not in missing:
                    missing.append(path)
    if not missing:
        return
    shown = '\n'.join(f'  {path}' for path in missing[:6]) + ('\n  ...' if len(missing) > 6 else '')
    roots = sorted({str(_first_missing(path)) for path in missing})
    raise UserError(
        f'the data of this config is not there. Missing, seen from {os.getcwd()}:\n{shown}\n'
        f'If you have it elsewhere, link it: ln -s /where/it/is {roots[0]}\n'
        'To try the config without any data, add --shapes.'
    )


def _paths(node: Any, scope: str | None) -> list[Path]:
    """Files and folders that loaders and evaluators name and read, through wrappers and lists."""
    found = []
    for _, item in walk(node):
        if not _is_local(item):
            continue
        root = item.get('data_root') or ''
        ann_file, prefix = item.get('ann_file'), item.get('data_prefix')
        prefixes = prefix if isinstance(prefix, dict) else {'': prefix}
        read = [value for key, value in prefixes.items() if _is_read(key, item.get('pipeline'), scope)]
        names = [os.path.join(root, part) for part in (ann_file, *read) if isinstance(part, str) and part]
        names += [root] if root and not any((ann_file, *prefixes.values())) and not _fetches(item) else []
        found += [Path(name) for name in names if isinstance(name, str) and '://' not in name]
    return found


def _is_local(item: dict) -> bool:
    """Whether names are files of this machine: another backend has its own names."""
    backends = [item.get(key) for key in ('backend_args', 'file_client_args')]
    return all(each.get('backend', 'local') in ('local', 'disk') for each in backends if isinstance(each, dict))


def _is_read(key: str, pipeline: Any, scope: str | None) -> bool:
    """Whether a step of a pipeline reads what lies under a prefix. Those of maps are often inherited and not read."""
    if not key.startswith(MAPS):
        return True
    for _, step in walk(pipeline):
        name = type_name(step)
        semantic = scope == 'mmseg' or str(step.get('type')).startswith('mmseg')
        if step.get('with_seg') or name == 'LoadPanopticAnnotations' or (semantic and name == 'LoadAnnotations'):
            return True
    return False


def _fetches(item: dict) -> bool:
    """Whether a data set fetches what is not there."""
    return type_name(item) in FETCHED and item.get('download', True)


def _first_missing(path: Path) -> Path:
    """The topmost folder on the way to `path` that is not there."""
    for parent in [*reversed(path.parents), path]:
        if not parent.exists():
            return parent
    return path
