"""Checks the data of a config before a training, and writes a report: behind tools/check_dataset.py."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from ...config.editing import shorten
from ...registry import DATASETS
from ...utils.files import write_whole
from .classes import check_num_classes, class_folders
from .dataset import inner_datasets
from .guard import guard_of
from .kinds import KINDS, BadDataError, Fault
from .scan import examine

__all__ = ['check_splits', 'count_errors', 'report_lines', 'write_report']

SHOWN = 4  # names of a kind on the screen


def check_splits(
    cfg: Config,
    splits: Sequence[str],
    *,
    masks: bool,
    workers: int = 0,
    fast: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Looks at the annotations and at every sample of some splits.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain.
        splits: Of ``'train'``, ``'val'`` and ``'test'``; those that the config does not have are left out.
        masks: Whether instance masks are needed.
        workers: Processes that read; 0 for this one.
        fast: Look at the files without decoding them.
        progress: Called as progress(split, done, total) after each sample.

    Returns:
        By split: ``data`` (what it is), ``samples`` (their number) and ``faults``, by kind: level, remedy, and
        ``found``, the path and the detail of each. A split with the same data as one before has ``same_as`` only.
    """
    if cfg.get('default_scope'):
        init_default_scope(cfg.default_scope)
    report: dict[str, Any] = {}
    seen: dict[str, str] = {}
    folders = None
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if dataset is None:
            continue
        key = repr(dataset)
        if key in seen:
            report[split] = {'same_as': seen[key]}
            continue
        seen[key] = split
        faults: list[Fault] = []
        samples = 0
        # as training data: that of the others would be read already now, to be left out
        guarded = {'type': 'mmext_backbones.GuardedDataset', 'dataset': dataset, 'split': 'train', 'skip': True}
        try:
            built = DATASETS.build({**guarded, 'masks': masks, 'class_folders': folders})
            for leaf in inner_datasets(built):
                guard = guard_of(leaf)
                if guard is None:
                    continue
                samples += len(leaf)
                faults += guard.faults
                report_progress = (lambda done, total, split=split: progress(split, done, total)) if progress else None
                for found in examine(guard, workers=workers, fast=fast, progress=report_progress):
                    faults += found
                faults += _empty_classes(leaf)
                folders = class_folders(leaf) if folders is None and split == 'train' else folders
            metainfo = getattr(built, 'metainfo', None) or {}
            check_num_classes(cfg, metainfo.get('classes'), split)
        except BadDataError as error:
            faults.append(Fault(error.kind, f'{split} data', str(error)))
        report[split] = {'data': shorten(dataset), 'samples': samples, 'faults': _by_kind(faults)}
    return report


def _empty_classes(leaf: Any) -> list[Fault]:
    """Classes of an image-folder data set without an image."""
    folders = class_folders(leaf)
    if folders is None:
        return []
    used = {leaf.get_data_info(index)['gt_label'] for index in range(len(leaf))}
    return [
        Fault('class without images', os.path.join(leaf.img_prefix, name), f'class {label}')
        for label, name in enumerate(folders)
        if label not in used
    ]


def _by_kind(faults: Sequence[Fault]) -> dict[str, Any]:
    """Faults in the order of `KINDS`, each once."""
    found: dict[str, dict[Fault, None]] = {}
    for fault in faults:
        found.setdefault(fault.kind, {})[fault] = None
    return {
        kind: {
            'level': KINDS[kind].level,
            'remedy': KINDS[kind].remedy,
            'found': [{'path': fault.path, 'detail': fault.detail} for fault in found[kind]],
        }
        for kind in KINDS
        if kind in found
    }


def count_errors(report: dict[str, Any]) -> int:
    """Errors in a report of `check_splits`; notes do not count."""
    kinds = [kind for part in report.values() for kind in part.get('faults', {}).values()]
    return sum(len(kind['found']) for kind in kinds if kind['level'] == 'error')


def report_lines(report: dict[str, Any]) -> list[str]:
    """A report of `check_splits` for the screen."""
    lines = []
    for split, part in report.items():
        if 'same_as' in part:
            lines += ['', f'{split}: the same data as {part["same_as"]}']
            continue
        lines += ['', f'{split}: {part["samples"]} samples of {part["data"]}']
        for name, kind in part['faults'].items():
            lines.append(f'  {kind["level"]:<6}{len(kind["found"]):>6}  {name}: {kind["remedy"]}')
            for item in kind['found'][:SHOWN]:
                lines.append(f'{"":>16}{item["path"]}: {item["detail"]}'.replace('\n', f'\n{"":>18}'))
            if len(kind['found']) > SHOWN:
                lines.append(f'{"":>16}... and {len(kind["found"]) - SHOWN} more')
        if not part['faults']:
            lines.append('  nothing to report')
    return lines


def write_report(report: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes a report as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(report, indent=2, ensure_ascii=False) + '\n')
