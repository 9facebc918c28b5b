"""Lists the trained models that the page offers: those in work dirs, and those named on the command line."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..config.files import load_config
from ..engine.resume.checkpoint_hook import LAST
from ..utils.errors import UserError, did_you_mean
from ..utils.files import read_path
from ..utils.printable import one_line

__all__ = ['Model', 'find_runs', 'model_of', 'models_of']

DEPTH = 3  # folders below the root in which a run may lie
CONFIG_SUFFIXES = ('.py', '.json', '.yaml', '.yml')


class Model(NamedTuple):
    """What a person chooses: a name for the eye, a config and a checkpoint."""

    name: str
    config: str
    weights: str


def find_runs(root: str | Path) -> list[Model]:
    """The runs below a folder that have a config and a checkpoint, the newest checkpoint first.

    Of several checkpoints the best one counts, then the last one, then the one of most iterations or epochs.

    Args:
        root: Of the work dirs; it need not exist.
    """
    root = Path(root)
    found: list[tuple[float, Model]] = []
    for folder, subfolders, files in os.walk(root):
        depth = len(Path(folder).relative_to(root).parts)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith('.')) if depth < DEPTH else []
        weights = _weights(Path(folder), files)
        config = _config(Path(folder), files) if weights else None
        if weights and config:
            name = f'{os.path.relpath(folder, root) if depth else root.resolve().name} ({weights.stem})'
            found.append((weights.stat().st_mtime, Model(one_line(name), str(config), str(weights))))
    return [model for _, model in sorted(found, key=lambda each: (-each[0], each[1].name))]


def model_of(config: str, weights: str, taken: Sequence[str] = ()) -> Model:
    """A model that is named by the paths of two files on this machine.

    Args:
        config: Path of a config, or its ``library::path`` name.
        weights: Path of a checkpoint.
        taken: Names that other models have; this one gets another.

    Raises:
        UserError: if one of them is missing, no file, or the config cannot be read.
    """
    config, weights = config.strip(), weights.strip()
    if not config or not weights:
        raise UserError(f'the path of the {"weights" if config else "config"} is missing: both are needed.')
    _check_weights(weights)
    load_config(config)
    name = one_line(f'{Path(config.rpartition("::")[2]).stem} ({Path(weights).stem})')
    number = 2
    while name in taken:
        name = f'{name.removesuffix(f" #{number - 1}")} #{number}'
        number += 1
    return Model(name, config, weights)


def models_of(paths: Sequence[str]) -> list[Model]:
    """Models of a command line: config, weights, config, weights, ...

    Raises:
        UserError: for an odd number of paths, and as `model_of` does.
    """
    if len(paths) % 2:
        raise UserError(f'expected pairs CONFIG WEIGHTS, got {len(paths)} paths: {paths[-1]!r} has no partner.')
    models: list[Model] = []
    for config, weights in zip(paths[::2], paths[1::2], strict=True):
        models.append(model_of(config, weights, [model.name for model in models]))
    return models


def _check_weights(weights: str) -> None:
    path = Path(weights)
    if '://' in weights:
        raise UserError(f'weights {weights!r}: only a file on the machine of this page can be named, no address.')
    if path.is_dir():
        raise UserError(f'weights {weights!r} is a folder: name a checkpoint file in it.')
    if not path.is_file():
        known = [str(other) for other in sorted(path.parent.glob('*.pth'))] if path.parent.is_dir() else []
        raise UserError(f'weights {weights!r}: there is no such file.{did_you_mean(weights, known)}')


def _weights(folder: Path, files: Sequence[str]) -> Path | None:
    """The checkpoint of a run that stands for it."""
    best = [folder / name for name in files if name.startswith('best_') and name.endswith('.pth')]
    if best:
        return max(best, key=lambda path: path.stat().st_mtime)
    last = Path(read_path(folder / LAST) or folder)
    there = next((path for path in (last, folder / last.name) if path.is_file()), None)  # a folder may be moved
    rest = [folder / name for name in files if name.endswith('.pth')]
    return there or max(rest, key=_length, default=None)


def _length(checkpoint: Path) -> tuple[int, float]:
    """Iterations or epochs that its name says, and when it was written."""
    number = re.search(r'_(\d+)$', checkpoint.stem)
    return int(number.group(1)) if number else -1, checkpoint.stat().st_mtime


def _config(folder: Path, files: Sequence[str]) -> Path | None:
    """The config of a run as it was written at its last start."""
    written = [folder / name for name in files if name.endswith(CONFIG_SUFFIXES[0])]
    written = written or sorted(folder.glob('*/vis_data/config.py'))
    return max(written, key=lambda path: path.stat().st_mtime, default=None)
