"""Converts files of weights from one layout to another, without a model."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..utils.files import in_place, keep_inputs
from . import swin
from .fitting import WeightsError, check_values, describe_unknown, unwrap
from .layouts import FAMILIES, OWN, find_layout, strip_prefix
from .loading import read

__all__ = ['TARGETS', 'convert_file', 'to_ours']

# name -> from our layout to another; these are Swin's alone
TARGETS = {'ours': None, 'timm': swin.to_timm, 'mmdet': swin.to_openmmlab, 'mmseg': swin.to_openmmlab}


def to_ours(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str, str, str]:
    """Any recognised layout, under any prefix, to ours.

    Returns:
        The backbone's tensors by our names without the prefix, the family, who wrote the layout, and the prefix.

    Raises:
        WeightsError: if no layout is recognised.
    """
    for family in FAMILIES:
        try:
            found = find_layout(tensors, family)
            if found is None:
                continue
            layout, prefix = found
            return layout.to_ours(strip_prefix(tensors, prefix)), family, layout.name, prefix
        except ValueError as error:
            raise WeightsError(f'{source}: {error}') from error
    raise WeightsError(f'{source}: {describe_unknown(tensors)}')


def convert_file(source: str, target: str | os.PathLike, *, to: str = 'ours', force: bool = False) -> str:
    """Convert `source` and write `target`.

    Args:
        source: A file or an address, see `loading`.
        target: A file that ends in ``.pth`` or ``.safetensors``.
        to: A key of `TARGETS`.
        force: Replace `target`.

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
    tensors = unwrap(read(source), source)
    check_values(tensors, source)
    backbone, family, layout, prefix = to_ours(tensors, source)
    back = TARGETS[to]
    if back is not None:
        if family != 'SwinTransformer':
            raise WeightsError(f'{source}: it is a {family}, and only Swin can be written as --to {to}')
        backbone = back(backbone)
    kept = {key: value for key, value in tensors.items() if not key.startswith(prefix)}
    result = kept | {prefix.removeprefix('module.') + key: value for key, value in backbone.items()}
    digest = write(result, path)
    rows = [
        ('read', source),
        ('layout', f'{family} as {layout} writes it' if layout != OWN else f'{family}, ours'),
        ('tensors', f'{len(tensors)} read, {len(backbone)} of the backbone and {len(kept)} beside it written'),
        ('written', f'{path}, layout: {to}'),
        ('sha256', digest),
    ]
    return '\n'.join(f'{name:10} {text}' for name, text in rows)


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
