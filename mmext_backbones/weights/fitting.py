"""Fits a state dict of any known layout to a backbone, with a report of what became of every tensor."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..utils.errors import few
from ..utils.printable import one_line
from .containers import plain_names, unwrap
from .errors import WeightsError
from .layouts import FAMILIES, OWN, Layout, find_layout, find_places, network_at, strip_prefix
from .resize import resize_patch_kernel, resize_position_embedding, resize_window_table

__all__ = ['Report', 'WeightsError', 'check_values', 'describe_unknown', 'fit', 'is_classifier', 'unwrap']

# what a file may lack: the norms of output maps and the pyramid are not in a classifier; counters matter to no one
FRESH = re.compile(r'norm\d\..*|upsample\..*|.*\.num_batches_tracked')
REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
NOT_DENSE = 'is sparse, nested or quantised'
MOST = 8  # networks of one file that are tried


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
        prefix: Where the network stands in the file.
        others: Where further networks of its family stand.
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
    prefix: str = ''
    others: list[str] = field(default_factory=list)

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
        if self.others:
            lines.append(f'network      {one_line(self.prefix or "the one without a prefix")}; {_ways(self.others)}')
        for name, keys, note in rows:
            if keys or name == 'loaded':
                line = f'{name:12} {len(keys):4}  {_some(keys) if note is None else note}'
                lines.append(one_line(line.rstrip()))
        return '\n'.join(lines)


def check_values(tensors: Mapping[str, Tensor], source: str, wanted: Mapping[str, Tensor] | None = None) -> None:
    """Looks at every value: a tensor may have the right name and shape and still spoil the model.

    Args:
        tensors: Weights by name.
        source: Where they came from, for messages.
        wanted: The tensors they are to fill, by the same names; others are not looked at. Floating point numbers of 16
            bits or more may be filled into another such precision, if it holds their values; integers, booleans,
            complex, quantised and 8-bit numbers may not. Without it all tensors are looked at, but for masks, in which
            infinity has a meaning.

    Raises:
        WeightsError: naming the first tensors that cannot be used, and why.
    """
    bad = {}
    for key, tensor in tensors.items():
        if key not in wanted if wanted is not None else key.endswith('mask'):
            continue
        if wanted is not None:
            goal = wanted[key].dtype
        else:  # what nearly every model has
            goal = torch.float32 if key.endswith(('.weight', '.bias')) else None
        fault = _fault(tensor, goal)
        if fault is not None:
            bad[key] = fault
    _refuse(bad, source)


def _refuse(bad: Mapping[str, str], source: str) -> None:
    if bad:
        shown = ', '.join(f'{key} {why}' for key, why in list(bad.items())[:3])
        raise WeightsError(f'{source} cannot be used: {shown}{", ..." if len(bad) > 3 else ""} ({len(bad)} in all)')


def _fault(tensor: Tensor, goal: torch.dtype | None) -> str | None:
    """Why a tensor cannot fill one of the type `goal`; None if it can."""
    kind = str(tensor.dtype).removeprefix('torch.')
    if tensor.is_meta:
        return 'has no values'
    if not _is_dense(tensor):
        return NOT_DENSE
    if tensor.dtype not in REAL:
        return f'holds {kind} numbers' if tensor.is_complex() or goal in REAL else None
    if not bool(tensor.isfinite().all()):
        return 'holds NaN or infinity'
    narrow = goal in REAL and torch.finfo(goal).max < torch.finfo(tensor.dtype).max
    if narrow and not bool(tensor.to(goal).isfinite().all()):
        return f'holds {kind} numbers beyond the largest of {str(goal).removeprefix("torch.")}'
    return None


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested


def fit(
    state_dict: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    family: str | None,
    source: str,
    prefix: str | None = None,
) -> tuple[dict[str, Tensor], Report]:
    """Convert a state dict to our layout and to the shapes of a model.

    Args:
        state_dict: Tensors of any layout of the family, under any prefix, of a model any part of which may be wrapped.
        wanted: The model's own state dict.
        family: A key of `FAMILIES`, or None for a backbone of none of them.
        source: Where the tensors came from, for messages.
        prefix: Where the backbone stands in `state_dict`; when None, or where it stands further in, the network that
            fills most of the model is taken.

    Returns:
        The tensors that fit, by the model's names, and the report. Nothing has been loaded.

    Raises:
        WeightsError: if no layout of the family is recognised.
    """
    if prefix is not None:
        state_dict = under_prefix(state_dict, prefix, source)
    state_dict = plain_names(state_dict)
    names = dict(zip(plain_names(wanted), wanted, strict=True))
    places = find_places(state_dict, family)
    if not places:
        raise WeightsError(f'{source} holds no weights of a {family}: {describe_unknown(state_dict, family)}')
    found = {at: layout for layout, at in places}
    tried = [''] if prefix is not None and '' in found else list(found)[:MOST]
    try:
        fits = [_fit_at(state_dict, plain_names(wanted), found, at, source) for at in tried]
    except WeightsError:
        raise
    except ValueError as error:
        raise WeightsError(f'{source}: {error}') from error
    tensors, report = max(fits, key=lambda each: len(each[1].loaded))  # the first of equals
    report.others = [(prefix or '') + at for at in found if at != report.prefix]
    report.prefix = (prefix or '') + report.prefix
    return {names[key]: tensor for key, tensor in tensors.items()}, report


def _fit_at(
    state_dict: Mapping[str, Tensor], wanted: Mapping[str, Tensor], places: Mapping[str, Layout], at: str, source: str
) -> tuple[dict[str, Tensor], Report]:
    """As `fit`, for the network under one prefix of those where networks stand."""
    layout = places[at]
    report = Report(source, layout.name, prefix=at)
    mine = network_at(state_dict, at, places)
    report.ignored += [key for key in state_dict if not key.startswith(at) or key[len(at) :] not in mine]
    _refuse({at + key: NOT_DENSE for key, tensor in mine.items() if not _is_dense(tensor)}, source)
    converted, report.unexpected = layout.to_ours(mine)
    unknown = set(report.unexpected)
    report.ignored += [key for key in mine if layout.convert and is_classifier(key) and key not in unknown]

    fitting = {}
    built = {-1} | {int(key.split('.')[1]) for key in wanted if key.startswith('stages.')}
    for key, tensor in converted.items():
        if key not in wanted:
            (report.ignored if _is_unbuilt(key, max(built)) else report.unexpected).append(key)
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
    if key == 'absolute_pos_embed.weight':
        return resize_position_embedding(tensor, shape)
    if key == 'patch_embed.proj.weight' and tensor.dim() == 4 and tensor.shape[:2] == shape[:2]:
        return resize_patch_kernel(tensor, shape[-1])
    return None


def is_classifier(key: str) -> bool:
    """A part of a classifier beside its stages, by the names of those who publish them."""
    return bool(re.match(r'(head|norm|aux_head|post_network)\.|cls_token$', key))


def _is_unbuilt(key: str, last: int) -> bool:
    """A part that a model with fewer outputs does not build: a stage after its last, the way to it, a norm, the
    pyramid, the positions."""
    match = re.match(r'stages\.(\d+)\.(\w+)\.', key)
    if match is None:
        return bool(re.match(r'norm\d\.|upsample\.|absolute_pos_embed\.', key))
    stage = int(match.group(1))
    return stage > last or (stage == last and match.group(2) == 'downsample')


def describe_unknown(keys: Mapping[str, Tensor], family: str | None = None) -> str:
    """What a stranger's file seems to be, and the layouts of a family that would have been known."""
    for other in FAMILIES:
        found = find_layout(keys, other)
        if found is not None:
            return f'it is a {other} in the layout of {found[0].name}'
    families = [family] if family in FAMILIES else list(FAMILIES)
    known = '; '.join(f'{name} of {", ".join(layout.name for layout in FAMILIES[name])}' for name in families)
    return f'its keys are of no known layout ({", ".join(list(keys)[:3])}, ...). Known: {known}'


def under_prefix(state_dict: Mapping[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it.

    Raises:
        WeightsError: if there are none; it says what names begin with.
    """
    inside = strip_prefix(state_dict, prefix)
    if not inside:
        starts = few(list(dict.fromkeys(f'{key.partition(".")[0]}.' for key in state_dict if '.' in key)))
        raise WeightsError(f'{source}: no key begins with prefix={prefix!r}; they begin with {starts or "no prefix"}')
    return inside


def _ways(others: list[str]) -> str:
    """How to take another network of a file."""
    return 'another one by ' + ' or '.join(f'prefix={other!r}' for other in others[:3])


def _shape(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape))


def _some(keys: list[str], limit: int = 4) -> str:
    """The first keys."""
    return ', '.join(keys[:limit]) + (', ...' if len(keys) > limit else '')
