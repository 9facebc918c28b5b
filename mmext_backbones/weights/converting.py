"""Converts files of weights from one layout to another, without a model."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.files import in_place, keep_inputs
from . import swin
from .containers import plain_names, unwrap
from .errors import WeightsError
from .fitting import check_values, describe_unknown, under_prefix
from .layouts import FAMILIES, OWN, find_places, network_at
from .loading import read

__all__ = ['TARGETS', 'Converted', 'convert_file', 'to_ours']

# name -> from our layout to another; these are Swin's alone
TARGETS = {'ours': None, 'timm': swin.to_timm, 'mmdet': swin.to_openmmlab, 'mmseg': swin.to_openmmlab}


class Converted(NamedTuple):
    """A backbone by our names.

    Attributes:
        tensors: Of the backbone, without the prefix.
        family: Its class.
        layout: Who wrote the layout it came in.
        prefix: Where it stood.
        dropped: What stood there besides, and has no place in a backbone: by its names there.
        others: Where further networks of the family stand.
    """

    tensors: dict[str, Tensor]
    family: str
    layout: str
    prefix: str
    dropped: list[str]
    others: list[str]


def to_ours(tensors: Mapping[str, Tensor], source: str) -> Converted:
    """Any recognised layout, under any prefix, to ours.

    Raises:
        WeightsError: if no layout is recognised.
    """
    family, places = next(((f, places) for f in FAMILIES if (places := find_places(tensors, f))), (None, []))
    if family is None:
        raise WeightsError(f'{source}: {describe_unknown(tensors)}')
    (layout, prefix), *others = places
    mine = network_at(tensors, prefix, [other for _, other in others])
    try:
        converted, _ = layout.to_ours(mine)
        dropped = _dropped(mine, lambda one: layout.to_ours(one)[0])
    except ValueError as error:
        raise WeightsError(f'{source}: {error}') from error
    return Converted(converted, family, layout.name, prefix, dropped, [other for _, other in others])


def _dropped(tensors: Mapping[str, Tensor], convert: Callable[[dict[str, Tensor]], Mapping]) -> list[str]:
    """The keys of which a conversion leaves nothing."""
    return [key for key, tensor in tensors.items() if not convert({key: tensor})]


def convert_file(
    source: str, target: str | os.PathLike, *, to: str = 'ours', force: bool = False, prefix: str | None = None
) -> str:
    """Convert `source` and write `target`.

    Args:
        source: A file or an address, see `loading`.
        target: A file that ends in ``.pth`` or ``.safetensors``.
        to: A key of `TARGETS`.
        force: Replace `target`.
        prefix: Write only what stands under it, without it: of a student and a teacher, ``teacher.``.

    Returns:
        What was done, with the SHA-256 of the new file, for people.

    Raises:
        UserError: if `source` cannot be read or converted, or `target` is `source`, is there already or of another
            kind.
    """
    path = Path(target)
    if path.suffix not in ('.pth', '.safetensors'):
        raise WeightsError(f'{target}: expected a name that ends in .pth or .safetensors')
    if path.exists() and not force:
        raise WeightsError(f'{target} is there already: name another file, or replace it with --force')
    keep_inputs(f'OUT {target}', [path], [source])
    if not path.parent.is_dir():
        raise WeightsError(f'{target}: there is no folder {path.parent}')
    tensors = unwrap(read(source), source, others=prefix is not None, prefix=prefix)
    if prefix is not None:
        tensors = under_prefix(tensors, prefix, source)
    check_values(tensors, source)
    tensors = plain_names(tensors)
    found = to_ours(tensors, source)
    backbone, dropped = found.tensors, [found.prefix + key for key in found.dropped]
    back = TARGETS[to]
    if back is not None:
        if found.family != 'SwinTransformer':
            raise WeightsError(f'{source}: it is a {found.family}, and only Swin can be written as --to {to}')
        dropped += [found.prefix + key for key in _dropped(backbone, back)]
        backbone = back(backbone)
    kept = {key: value for key, value in tensors.items() if not key.startswith((found.prefix, *found.others))}
    digest = write(kept | {found.prefix + key: value for key, value in backbone.items()}, path)
    others = f'; there is another under {", ".join(found.others)} (--prefix takes it)' if found.others else ''
    rows = [
        ('read', f'{source}, {len(tensors)} tensors'),
        ('layout', f'{found.family}, {"ours" if found.layout == OWN else f"that of {found.layout}"}{others}'),
        ('backbone', f'{len(backbone)} tensors'),
        ('kept', f'{len(kept)} beside it, as they are{_summary(kept)}'),
        ('dropped', f'{len(dropped)} that have no place there{_summary(dropped)}'),
        ('written', f'{path}, layout: {to}'),
        ('sha256', digest),
    ]
    return '\n'.join(f'{name:10} {text}' for name, text in rows)


def _summary(keys: Iterable[str]) -> str:
    """Names of tensors, those that differ in numbers alone once: ``: layers.*.blocks.*.attn_mask (12), head.bias``."""
    kinds = Counter(re.sub(r'(?<![^.])\d+(?![^.])', '*', key) for key in keys)
    names = [f'{kind} ({number})' if number > 1 else kind for kind, number in kinds.items()]
    return f': {", ".join(names)}' if names else ''


def write(tensors: Mapping[str, Tensor], path: Path) -> str:
    """Write tensors in whole or not at all; the SHA-256 of the file."""
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    with in_place(path) as partial:
        if path.suffix == '.safetensors':
            try:
                from safetensors.torch import save_file
            except ImportError as error:
                raise ImportError(f'{path}: needs safetensors, pip install "mmext_backbones[hub]"') from error

            # views of one storage are refused there
            save_file({key: value.clone() for key, value in tensors.items()}, partial, metadata={'format': 'pt'})
        else:
            torch.save({'state_dict': tensors}, partial)
        return hashlib.sha256(partial.read_bytes()).hexdigest()
