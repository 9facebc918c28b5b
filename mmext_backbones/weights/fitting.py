"""Fits a state dict of any known layout to a backbone, with a report of what became of every tensor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..utils.errors import UserError
from ..utils.printable import one_line
from .layouts import FAMILIES, OWN, find_layout, strip_prefix
from .resize import resize_patch_kernel, resize_window_table

__all__ = ['Report', 'WeightsError', 'check_values', 'describe_unknown', 'fit', 'unwrap']

# what a file may lack: the norms of output maps and the pyramid are not in a classifier; counters matter to no one
FRESH = re.compile(r'norm\d\..*|upsample\..*|.*\.num_batches_tracked')


class WeightsError(UserError, ValueError):
    """Weights that do not belong to the model, or not all of them."""


@dataclass
class Report:
    """What became of the tensors of a file and of a model.

    Attributes:
        source: Where the weights came from.
        layout: Who writes such files.
        loaded: Keys of the model that were filled.
        converted: Those of them whose name or value changed.
        resized: Those of them whose shape changed, with the shape in the file.
        fresh: Keys of the model that keep their initial values, as they should.
        ignored: Keys of the file that have no place in the model, as they should not.
        missing: Keys of the model that the file should have filled.
        unexpected: Keys of the file that nothing explains.
        wrong_shape: Keys with the shape in the file and in the model.
    """

    source: str
    layout: str = ''
    loaded: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    resized: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    wrong_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every tensor is explained."""
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        shapes = [f'{key} {_shape(had)} -> {_shape(wants)}' for key, (had, wants) in self.wrong_shape.items()]
        rows = [
            ('loaded', self.loaded, ''),
            ('converted', self.converted, 'renamed or reordered'),
            ('resized', [f'{key} from {_shape(shape)}' for key, shape in self.resized.items()], None),
            ('fresh', self.fresh, None),
            ('ignored', self.ignored, None),
            ('missing', self.missing, None),
            ('unexpected', self.unexpected, None),
            ('wrong shape', shapes, None),
        ]
        lines = [f'weights      {one_line(self.source)}', f'layout       {self.layout}']
        for name, keys, note in rows:
            if keys or name == 'loaded':
                line = f'{name:12} {len(keys):4}  {_some(keys) if note is None else note}'
                lines.append(one_line(line.rstrip()))
        return '\n'.join(lines)


def unwrap(content: Any, source: str) -> dict[str, Tensor]:
    """The tensors by name, from what a checkpoint file holds: alone, or under `state_dict`, `model` or their averages.

    Raises:
        WeightsError: if there are none, or something else stands among the weights.
    """
    found = False
    for _ in range(2):  # {'model': {'state_dict': ...}} exists
        if not isinstance(content, Mapping):
            break
        for key in ('state_dict', 'model', 'state_dict_ema', 'model_ema'):
            if isinstance(content.get(key), Mapping):
                content, found = content[key], True
                break
    if not isinstance(content, Mapping):
        raise WeightsError(f'{source} holds a {type(content).__name__}: expected a state dict')
    strange = [key for key, value in content.items() if not isinstance(value, (Tensor, int, float, Mapping))]
    if found and strange:
        kind = type(content[strange[0]]).__name__
        raise WeightsError(f'{source}: among its weights {strange[0]} is a {kind}, and no tensor')
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f'{source} holds no tensors')
    return tensors


def check_values(tensors: Mapping[str, Tensor], source: str, wanted: Mapping[str, Tensor] | None = None) -> None:
    """Looks at every value: a tensor may have the right name and shape and still spoil the model.

    Args:
        tensors: Weights by name.
        source: Where they came from, for messages.
        wanted: The tensors they are to fill, by the same names. Floating point numbers of any precision may be filled
            into another one; integers, booleans and complex numbers may not.

    Raises:
        WeightsError: naming the first tensors that cannot be used, and why.
    """
    bad = {}
    for key, tensor in tensors.items():
        goal = (wanted or {}).get(key)
        to_be_real = goal.is_floating_point() if goal is not None else key.endswith(('.weight', '.bias'))
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            bad[key] = 'has no values' if tensor.is_meta else 'is sparse or quantised'
        elif tensor.is_complex() or (to_be_real and not tensor.is_floating_point()):
            bad[key] = f'holds {str(tensor.dtype).removeprefix("torch.")} numbers'
        elif tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad[key] = 'holds NaN or infinity'
    if bad:
        shown = ', '.join(f'{key} {why}' for key, why in list(bad.items())[:3])
        raise WeightsError(f'{source} cannot be used: {shown}{", ..." if len(bad) > 3 else ""} ({len(bad)} in all)')


def fit(
    state_dict: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    family: str | None,
    source: str,
    prefix: str | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Convert a state dict to our layout and to the shapes of a model.

    Args:
        state_dict: Tensors of any layout of the family, under any prefix.
        wanted: The model's own state dict.
        family: A key of `FAMILIES`, or None for a backbone of none of them.
        source: Where the tensors came from, for messages.
        prefix: Where the backbone stands in `state_dict`; found when None.

    Returns:
        The tensors that fit, by our names, and the report. Nothing has been loaded.

    Raises:
        WeightsError: if no layout of the family is recognised, or a recognised one has keys it should not have.
    """
    if prefix is not None:
        state_dict = strip_prefix(state_dict, prefix)
        if not state_dict:
            raise WeightsError(f'{source}: no key begins with prefix={prefix!r}')
    try:
        found = find_layout(state_dict, family)
        if found is None:
            raise WeightsError(f'{source} holds no weights of a {family}: {describe_unknown(state_dict)}')
        layout, inner = found
        report = Report(source, layout.name)
        mine = strip_prefix(state_dict, inner)
        report.ignored += [key for key in state_dict if not key.startswith(inner)]
        converted = layout.to_ours(mine)
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f'{source}: {error}') from error
    report.ignored += [key for key in mine if layout.convert is not None and _is_classifier(key)]

    fitting = {}
    for key, tensor in converted.items():
        if key not in wanted:
            (report.ignored if _is_unbuilt(key, wanted) else report.unexpected).append(key)
            continue
        resized = resize(key, tensor, wanted[key].shape)
        if resized is None:
            report.wrong_shape[key] = (tuple(tensor.shape), tuple(wanted[key].shape))
            continue
        if resized.shape != tensor.shape:
            report.resized[key] = tuple(tensor.shape)
        if layout.convert is not None and (key not in mine or tensor is not mine[key]):
            report.converted.append(key)
        fitting[key] = resized
        report.loaded.append(key)
    for key in wanted:
        if key not in converted:
            (report.fresh if FRESH.fullmatch(key) else report.missing).append(key)
    if layout.name == OWN and report.fresh and any(key.startswith('norm') for key in converted):
        # one of our own dense files has all its norms
        lost = [key for key in report.fresh if not key.endswith('num_batches_tracked')]
        report.missing += lost
        report.fresh = [key for key in report.fresh if key not in lost]
    return fitting, report


def resize(key: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """The tensor in another shape where that is meaningful, else None."""
    if tensor.shape == shape:
        return tensor
    if key.endswith('relative_position_bias_table'):
        return resize_window_table(tensor, shape)
    if key == 'patch_embed.proj.weight' and tensor.dim() == 4 and tensor.shape[:2] == shape[:2]:
        return resize_patch_kernel(tensor, shape[-1])
    return None


def _is_classifier(key: str) -> bool:
    return bool(re.match(r'(head|norm)\.', key))


def _is_unbuilt(key: str, wanted: Mapping[str, Tensor]) -> bool:
    """A part that a model with fewer outputs does not build: a later stage or the way to it, a norm, the pyramid."""
    match = re.match(r'stages\.(\d+)\.(\w+)\.', key)
    if match is None:
        return bool(re.match(r'norm\d\.|upsample\.', key))
    built = {-1} | {int(other.split('.')[1]) for other in wanted if other.startswith('stages.')}
    stage = int(match.group(1))
    return stage > max(built) or (stage == max(built) and match.group(2) == 'downsample')


def describe_unknown(keys: Mapping[str, Tensor]) -> str:
    """What a stranger's file seems to be."""
    for family in FAMILIES:
        found = find_layout(keys, family)
        if found is not None:
            return f'it is a {family} as {found[0].name} writes it'
    return f'its keys are of no known layout ({", ".join(list(keys)[:3])}, ...)'


def _shape(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))


def _some(keys: list[str], limit: int = 4) -> str:
    """The first keys."""
    return ', '.join(keys[:limit]) + (', ...' if len(keys) > limit else '')
