"""Checks that the files which a config names as data exist."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.errors import UserError
from .editing import walk


def check_data(cfg: Config, splits: Sequence[str]) -> None:
    """Looks for the data of some splits before anything is built.

    Raises:
        UserError: naming what is missing and where it is expected.
    """
    missing = []
    for split in splits:
        for source in (f'{split}_dataloader', f'{split}_evaluator'):
            for path in _paths(cfg.get(source)):
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


def _paths(node: Any) -> list[Path]:
    """Files and folders that loaders and evaluators name, through wrappers and lists."""
    found = []
    for _, item in walk(node):
        root = item.get('data_root') or ''
        ann_file, prefix = item.get('ann_file'), item.get('data_prefix')
        parts = [ann_file, *(prefix.values() if isinstance(prefix, dict) else [prefix])]
        names = [os.path.join(root, part) for part in parts if isinstance(part, str) and part]
        names += [root] if root and not names else []
        found += [Path(name) for name in names if '://' not in name]
    return found


def _first_missing(path: Path) -> Path:
    """The topmost folder on the way to `path` that is not there."""
    for parent in [*reversed(path.parents), path]:
        if not parent.exists():
            return parent
    return path
