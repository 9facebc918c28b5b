"""What the tools read for a config: nothing that they write may replace it."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from mmengine.config import Config

from ..utils.errors import UserError
from ..utils.files import keep_inputs
from .editing import walk
from .files import local_bases

__all__ = ['config_files', 'data_folder_of', 'keep_config_inputs', 'written_by_hand']

PICTURES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp', '.gif', '.pgm', '.ppm', '.npy', '.npz')


def keep_config_inputs(
    option: str, targets: Iterable[str | Path], cfg: Config, others: Iterable[str | Path | None] = ()
) -> None:
    """Looks whether what is to be written would replace what a config is, names or loads.

    Args:
        option: That names what is written, with its value, for the message.
        targets: Files that will be written.
        cfg: The config.
        others: Further files that are read, such as weights; None is passed over.

    Raises:
        UserError: if one of the targets is the config, a base of it, an annotation file, weights, one of `others`, or
            a picture that lies in a folder of data.
    """
    targets = list(targets)
    weights = [node['checkpoint'] for _, node in walk(cfg.get('model')) if isinstance(node.get('checkpoint'), str)]
    weights += [cfg['load_from']] if isinstance(cfg.get('load_from'), str) else []
    others = [other for other in others if other is not None]
    keep_inputs(option, targets, [*config_files(cfg), *_annotations(cfg), *weights, *others])
    there = [target for target in targets if str(target).lower().endswith(PICTURES) and os.path.isfile(target)]
    folders = _data_folders(cfg) if there else ()
    for target in there:
        if (folder := _holder(target, folders)) is not None:
            raise UserError(f'{option}: {str(target)!r} is a file of the data in {folder}. Name another place.')


def data_folder_of(path: str | Path, cfg: Config) -> str | None:
    """The folder of images or maps, of any split, in which a path lies; None if it lies in none."""
    return _holder(path, _data_folders(cfg))


def _holder(path: str | Path, folders: Iterable[str]) -> str | None:
    place = Path(os.path.realpath(path))
    return next((folder for folder in folders if place.is_relative_to(folder)), None)


def _nodes(cfg: Config) -> Iterator[dict]:
    for split in ('train', 'val', 'test'):
        for part in ('dataloader', 'evaluator'):
            yield from (node for _, node in walk(cfg.get(f'{split}_{part}')))


def _annotations(cfg: Config) -> Iterator[str]:
    """By the names that they have from here and from the root of any data set: a wrapper may have the root."""
    nodes = list(_nodes(cfg))
    roots = {'', *(str(node.get('data_root') or '') for node in nodes)}
    files = {node['ann_file'] for node in nodes if isinstance(node.get('ann_file'), str) and node['ann_file']}
    yield from (os.path.join(root, file) for root in roots for file in files)


def _data_folders(cfg: Config) -> set[str]:
    """Where the pictures and maps of data sets lie, by their real names."""
    found = set()
    for node in _nodes(cfg):
        if 'ann_file' not in node and 'data_prefix' not in node and 'data_root' not in node:
            continue
        root, prefix = node.get('data_root') or '', node.get('data_prefix')
        prefixes = prefix.values() if isinstance(prefix, dict) else [prefix or node.get('split') or '']
        names = [os.path.join(root, each) for each in prefixes if isinstance(root, str) and isinstance(each, str)]
        found.update(os.path.realpath(name) for name in names if name)
    return found


def config_files(cfg: Config) -> list[str]:
    """The file of a config and those that it inherits, without those of libraries."""
    return list(_inherited(cfg.filename, set())) if cfg.filename else []


def written_by_hand(cfg: Config, folder: str | Path) -> Path | None:
    """The file of `cfg`, or one that it inherits, whose place the dumped config of a run in `folder` would take.

    None where there is none, and where it is such a dump itself: whoever trains again from it changes values alone.
    """
    place = Path(folder) / Path(cfg.filename or '').name
    mine = place.is_file() and any(os.path.samefile(place, file) for file in config_files(cfg) if os.path.exists(file))
    if not mine:
        return None
    try:
        dumped = Config.fromfile(place).dump()
    except Exception:  # it was changed meanwhile
        return place
    return place if dumped.strip() != place.read_text(encoding='utf-8').strip() else None


def _inherited(file: str, seen: set[str]) -> Iterator[str]:
    file = os.path.abspath(file)
    if file not in seen:
        seen.add(file)
        yield file
        for base in local_bases(file):
            yield from _inherited(base, seen)
