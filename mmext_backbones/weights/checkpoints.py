"""Checkpoints: read, checked before a run, and compared with the model they are for."""

import functools
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log

from ..utils.cli import command_line
from ..utils.errors import UserError, did_you_mean
from .containers import AVERAGE, plain_names, unwrap
from .errors import WeightsError
from .fitting import check_values, fit
from .layouts import family_of, find_layout, strip_prefix
from .loading import read_file

SHARDS = ('--max_shard_size', '1000GB')  # one file


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
        options = ('--tag', name, *SHARDS)
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

    Of several networks in the file, as those of a model and of its average, the one that fills most of the model is
    taken.

    Raises:
        WeightsError: if they are of a known layout and not whole.
    """
    model = model.module if hasattr(model, 'module') else model
    state = model.state_dict()
    wanted = {key: value for key, value in state.items() if not key.endswith('num_batches_tracked')}
    names = dict(zip(plain_names(state), state, strict=True))
    weights = _of_one_network(plain_names(weights), names, checkpoint)
    family = family_of(type(getattr(model, 'backbone', None)))
    published = model.own_weights(weights, f'checkpoint {checkpoint!r}') if hasattr(model, 'own_weights') else None
    if published is not None:
        weights = published
    elif family is not None and find_layout(weights, family) is not None:
        backbone, report = fit(weights, model.backbone.state_dict(), family, f'checkpoint {checkpoint!r}')
        if report.others:
            _tell_choice(checkpoint, report.prefix, report.others)
        weights = {key: value for key, value in weights.items() if not key.startswith('backbone.')}
        weights |= {f'backbone.{key}': value for key, value in plain_names(backbone).items()}
    return {names.get(key, key): value for key, value in weights.items()}, wanted


def _of_one_network(weights: dict, wanted: dict, checkpoint: str) -> dict:
    """The weights without the prefix under which most of the wanted ones stand, and without those under the others."""
    found: Counter[str] = Counter()
    for key in weights:
        parts = key.split('.')
        found.update('.'.join(parts[:i]) for i in range(len(parts)) if '.'.join(parts[i:]) in wanted)
    most = max(found.values(), default=0)
    if found[''] == most:
        return weights
    # a few tensors may have a name of the model by chance
    likely = [at for at in found if at and 2 * found[at] > most]
    best, *others = (f'{at}.' for at in sorted(likely, key=lambda at: (-found[at], bool(AVERAGE.search(at)))))
    if others:
        _tell_choice(checkpoint, best, others)
    inside = strip_prefix(weights, best)
    return inside | {key: weights[key] for key in weights if not key.startswith((best, *others)) and key not in inside}


def _tell_choice(checkpoint: str, taken: str, others: list[str]) -> None:
    _tell(
        f'checkpoint {checkpoint!r} holds several networks: {taken or "the one without a prefix"} is taken, not '
        f'{", ".join(others)} (tools/convert_weights.py --prefix writes another one)'
    )


@functools.lru_cache(maxsize=8)
def _tell(text: str) -> None:
    """Once: a checkpoint is looked at before a run and loaded in it."""
    print_log(text, logger='current')


def rename_weights(model: torch.nn.Module, checkpoint: dict[str, Any]) -> None:
    """Puts the weights of a checkpoint where mmengine looks for them, by the names of the model; other parts stay.

    A checkpoint whose names are the model's is left as it is.

    Args:
        model: To be loaded.
        checkpoint: The content of its file, which is changed.
    """
    try:
        weights = unwrap(checkpoint, 'the checkpoint')
    except WeightsError:
        return  # a part of a checkpoint, as sharded ones have
    target = getattr(model, 'module', model)
    if hasattr(target, 'own_weights') and target.own_weights(weights, 'the checkpoint') is not None:
        checkpoint.setdefault('state_dict', weights)  # the model converts it, and reports
        return
    renamed, wanted = to_model_names(model, weights, 'the checkpoint')
    now = checkpoint.setdefault('state_dict', weights)
    if any(key in renamed and key not in now for key in wanted):
        checkpoint['state_dict'] = renamed
