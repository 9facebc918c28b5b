"""Checks the data of a config before a training, and writes a report: behind tools/check_dataset.py."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from ...config.editing import shorten
from ...registry import DATASETS
from ...utils.attempts import attempt
from ...utils.files import write_whole
from ...utils.printable import one_line, printable
from .classes import check_classes, class_folders
from .coverage import Labels, count_labels, count_maps, lacking, lacking_pixels, weight_faults
from .dataset import inner_datasets, parts
from .guard import guard_of
from .kinds import KINDS, BadDataError, Fault
from .mixing import mixing_guard_of
from .scan import examine
from .truth import evaluator_files, truth_faults

__all__ = ['check_splits', 'count_errors', 'report_lines', 'write_report']

SHOWN = 4  # names of a kind on the screen
MIXED = 200  # samples of a data set that mixes others: each reads several, and is another one each time


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
        init_default_scope(cfg['default_scope'])
    report: dict[str, Any] = {}
    seen: dict[str, str] = {}
    folders = None
    for split in splits:
        dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if dataset is None:
            continue
        key = repr((dataset, evaluator_files(cfg, split)))
        if key in seen:
            report[split] = {'same_as': seen[key]}
            continue
        seen[key] = split
        faults: list[Fault] = []
        samples = 0
        guarded = {'type': 'mmext_backbones.GuardedDataset', 'dataset': dataset, 'split': split, 'skip': True}
        try:
            built = DATASETS.build({**guarded, 'masks': masks, 'class_folders': folders, 'whole': True})
            leaves = list(inner_datasets(built))
            counted = []
            for leaf in leaves:
                if guard_of(leaf) is None:
                    counted.append(None)
                    continue
                samples += len(leaf)
                report_progress = (lambda done, total, split=split: progress(split, done, total)) if progress else None
                faults += _of_samples(cfg, split, leaf, workers=workers, fast=fast, progress=report_progress)
                counted.append(attempt('the count of labels', count_labels, leaf, None))
                folders = class_folders(leaf) if folders is None and split == 'train' else folders
            faults += _of_the_whole(cfg, split, built, leaves, counted, fast)
            attempt('the check of the classes', check_classes, cfg, leaves, split)
        except BadDataError as error:
            faults.append(Fault(error.kind, f'{split} data', str(error)))
        report[split] = {'data': shorten(dataset), 'samples': samples, 'faults': _by_kind(faults)}
    return report


def _of_samples(cfg: Config, split: str, leaf: Any, **options: Any) -> list[Fault]:
    """What is told by the annotations and the samples of one data set."""
    guard = guard_of(leaf)
    maps: list[np.ndarray] = []
    faults = [*guard.faults]
    for found in examine(guard, maps=maps, **options):
        faults += found
    maps = maps or attempt('the count of pixels', count_maps, leaf, default=[])
    faults += attempt('the count of pixels', lacking_pixels, leaf, maps, split, default=())
    faults += attempt('the check of class folders', _empty_classes, leaf, default=())
    if split == 'train':
        faults += attempt('the check of class weights', weight_faults, cfg, maps, default=())
    return faults


def _of_the_whole(
    cfg: Config, split: str, built: Any, leaves: list[Any], counted: list[Labels | None], fast: bool
) -> list[Fault]:
    """What is told by all data sets of a split together, and by its evaluator; and samples of those that mix."""
    faults = []
    if not any(class_folders(leaf) for leaf in leaves):  # told by folder
        faults += attempt('the check of labels', lacking, leaves, counted, split, default=())
    if split != 'train':
        faults += attempt('the check of the evaluator', truth_faults, cfg, split, built, default=())
    for guard in filter(None, map(mixing_guard_of, parts(built))) if not fast else ():
        for found in examine(guard, notes=False, most=MIXED):
            faults += found
    return faults


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
        lines += ['', f'{split}: {part["samples"]} samples of {printable(part["data"])}']
        for name, kind in part['faults'].items():
            lines.append(f'  {kind["level"]:<8}{len(kind["found"]):>6}  {name}: {kind["remedy"]}')
            for item in kind['found'][:SHOWN]:
                line = f'{one_line(item["path"])}: {printable(item["detail"])}'
                lines.append(f'{"":>18}{line}'.replace('\n', f'\n{"":>20}'))
            if len(kind['found']) > SHOWN:
                lines.append(f'{"":>18}... and {len(kind["found"]) - SHOWN} more')
        if not part['faults']:
            lines.append('  nothing to report')
    return lines


def write_report(report: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes a report as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(report, indent=2, ensure_ascii=False) + '\n')
