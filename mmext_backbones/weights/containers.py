"""Finds the tensors in the content of a file of weights, and the name that a wrapped module gives them.

Nothing leans on the name a file gives its weights: a mapping that holds tensors is one of weights, wherever it stands.
Names decide only which of several comes first.
"""

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .errors import WeightsError

__all__ = ['AVERAGE', 'plain_names', 'unwrap']

KNOWN = ('state_dict', 'model')  # what most code bases call the trained weights; their averages have other names
DEPTH = 3  # of mappings: {'checkpoint': {'model': {'state_dict': ...}}} exists
SMALL = 0.1  # of the largest mapping: what has fewer tensors (a loss, a scaler) is no second network
# names of networks that were averaged over a training, or that teach: they come after the trained ones
AVERAGE = re.compile(r'(?:^|[._])(?:\w*ema\d*|avg|averaged?|swa|teacher|momentum|shadow)(?=[._]|$)')
# what torch puts into the names of tensors where it wraps a module, or parts of it; a ``module.`` in front is a
# prefix as others are, for heads may stand beside it
WRAPPERS = re.compile(r'(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.|(?<=\.)module\.')


def unwrap(content: Any, source: str, *, others: bool = False, prefix: str | None = None) -> dict[str, Tensor]:
    """The tensors by name, from what a file of weights holds: alone, or in mappings up to three deep, under any name.

    Where several mappings may be networks and nothing tells which one was trained, as in a file of a ``student`` and a
    ``teacher``, all are taken, under where they stand: ``teacher.patch_embed.proj.weight``.

    Args:
        content: Of the file.
        source: Where it came from, for messages.
        others: Take all mappings that may be networks so, the trained one first, also where names tell which that is.
        prefix: What the caller will look for; where it begins with the place of a mapping, all are taken so.

    Raises:
        WeightsError: if there are none, or something else stands among the weights.
    """
    if not isinstance(content, Mapping):
        raise WeightsError(f'{source} holds a {type(content).__name__}: expected a state dict')
    found = dict(_mappings(content))
    if not found:
        _check_kinds(next((content[key] for key in KNOWN if isinstance(content.get(key), Mapping)), {}), source)
        inside = ', '.join(f'{key} (a {type(value).__name__})' for key, value in list(content.items())[:8])
        raise WeightsError(f'{source} holds no tensors{f": {inside}" if inside else ""}')
    large = _large(found)
    main = _main(large)
    if prefix is not None:
        others = any(path and prefix.startswith(f'{path}.') for path in found)
    if main is not None and not (others and (prefix is not None or len(large) > 1)):
        if main:
            _check_kinds(functools.reduce(lambda node, part: node[part], main.split('.'), content), source)
        return dict(found[main])
    order = sorted(found, key=lambda path: path != main)
    return {f'{path}.{key}' if path else key: tensor for path in order for key, tensor in found[path].items()}


def _mappings(content: Mapping, path: str = '', depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Where tensors stand in a nested mapping, and those that stand there. Numbered entries are no names of weights."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items() if depth else ():
        if isinstance(key, str) and '.' not in key and isinstance(value, Mapping):
            yield from _mappings(value, f'{path}.{key}' if path else key, depth - 1)


def _large(found: Mapping[str, Mapping]) -> list[str]:
    """The places that hold so many tensors that they may be networks."""
    enough = SMALL * max(map(len, found.values()))
    return [path for path, tensors in found.items() if len(tensors) >= enough]


def _main(large: list[str]) -> str | None:
    """Where the trained weights stand, if that is clear: under a known name, or at the only place."""
    known = [path for path in large if not path or set(path.split('.')) <= set(KNOWN)]
    if known:
        return min(known, key=lambda path: (not path, [KNOWN.index(part) for part in path.split('.') if part]))
    return large[0] if len(large) == 1 else None


def _check_kinds(weights: Mapping, source: str) -> None:
    for key, value in weights.items():
        if not isinstance(value, (Tensor, int, float, Mapping)) and not str(key).endswith('_extra_state'):
            raise WeightsError(f'{source}: among its weights {key} is a {type(value).__name__}, and no tensor')


def plain_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same entries by the names they have where no part inside the model is wrapped (FSDP, torch.compile, ...).

    Where two would get one name, all stay as they are.
    """
    plain = {WRAPPERS.sub('', key) if 'mod' in key else key: value for key, value in tensors.items()}
    return plain if len(plain) == len(tensors) else dict(tensors)
