"""Checkpoints: read, checked before a run, and compared with the model they are for."""

import os
from pathlib import Path
from typing import Any

import torch

from ..utils.cli import command_line
from ..utils.errors import UserError, did_you_mean
from .fitting import check_values, fit, unwrap
from .layouts import family_of, find_layout
from .loading import read_file


def read_meta(path: str) -> dict[str, Any]:
    """What a checkpoint says of its run (``epoch``, ``iter``, ``seed``, ...); empty if it is not one local file."""
    if '://' in path or not Path(path).is_file():
        return {}
    checkpoint = read_file(path, 'cpu', mmap=True)
    return checkpoint.get('meta', {}) if isinstance(checkpoint, dict) else {}


def check_checkpoint(path: str) -> dict | None:
    """Reads a checkpoint without holding its tensors in memory.

    Args:
        path: A file; addresses (``https://``, ``torchvision://``) are left to mmengine.

    Returns:
        The weights by name, or None for an address.

    Raises:
        UserError: if the file is missing or cannot be read.
    """
    if '://' in path:
        return None
    if Path(path).is_dir():
        folder, name = os.path.split(os.path.normpath(path))
        options = ('--tag', name, '--max_shard_size', '1000GB')
        make = command_line(f'{folder}/zero_to_fp32.py', folder, f'{folder}/fp32', *options)
        raise UserError(
            f'checkpoint {path!r} is a folder: expected a file. From one that DeepSpeed wrote, make the file\n  {make}'
        )
    if not Path(path).is_file():
        known = [str(other) for other in Path(path).parent.glob('*.pth')]
        raise UserError(f'checkpoint {path!r}: there is no such file.{did_you_mean(path, known)}')
    weights = unwrap(read_file(path, 'cpu', mmap=True), path)
    check_values(weights, path)
    return weights


def check_match(model: torch.nn.Module, weights: dict, checkpoint: str, shapes: bool) -> None:
    """A test needs every weight of the model: mmengine would go on with random ones.

    Raises:
        UserError: if some are missing or of another shape.
    """
    weights, wanted = to_model_names(model, weights, checkpoint)
    wrong = [key for key, value in wanted.items() if key not in weights or weights[key].shape != value.shape]
    if wrong:
        hint = 'It may come from another config' + ('.' if shapes else ', or from a run with --shapes.')
        raise UserError(
            f'checkpoint {checkpoint!r} does not fit this model: {len(wrong)} of {len(wanted)} tensors are missing or '
            f'of another shape ({", ".join(wrong[:3])}{", ..." if len(wrong) > 3 else ""}). {hint}'
        )
    check_values(weights, f'checkpoint {checkpoint!r}', wanted)


def to_model_names(model: torch.nn.Module, weights: dict, checkpoint: str) -> tuple[dict, dict]:
    """Weights of any known layout by the names of a model, and the tensors of the model but for counters.

    Raises:
        WeightsError: if they are of a known layout and not whole.
    """
    model = model.module if hasattr(model, 'module') else model
    wanted = {key: value for key, value in model.state_dict().items() if not key.endswith('num_batches_tracked')}
    weights = {key.removeprefix('module.'): value for key, value in weights.items()}
    family = family_of(type(getattr(model, 'backbone', None)))
    published = model.own_weights(weights, f'checkpoint {checkpoint!r}') if hasattr(model, 'own_weights') else None
    if published is not None:
        weights = published
    elif family is not None and find_layout(weights, family) is not None:
        backbone, _ = fit(weights, model.backbone.state_dict(), family, f'checkpoint {checkpoint!r}')
        weights = {key: value for key, value in weights.items() if not key.startswith('backbone.')}
        weights |= {f'backbone.{key}': value for key, value in backbone.items()}
    return weights, wanted
