"""Finds the tensors in the content of a file of weights, and the name that a wrapped module gives them.

Nothing leans on the name a file gives its weights: a mapping that holds tensors is one of weights, wherever it stands.
Names decide only which of several comes first.
"""

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

    Args:
        content: Of the file.
        source: Where it came from, for messages.
        others: Also take the tensors beside the trained ones (an average of them, say), under where they stand:
            ``model_ema.patch_embed.proj.weight``. Where nothing tells which are the trained ones, as in a file of a
            ``student`` and a ``teacher``, all are taken so in any case.
        prefix: What the caller will look for: where it names the place of the trained ones, they stand under it, too.

    Raises:
        WeightsError: if there are none, or something else stands among the weights.
    """
    if not isinstance(content, Mapping):
        raise WeightsError(f'{source} holds a {type(content).__name__}: expected a state dict')
    found = dict(_mappings(content))
    main = _main(found)
    if main and (prefix or '').startswith(f'{main}.'):
        main = None
    if not found:
        _check_kinds(next((content[key] for key in KNOWN if isinstance(content.get(key), Mapping)), {}), source)
        inside = ', '.join(f'{key} (a {type(value).__name__})' for key, value in list(content.items())[:8])
        raise WeightsError(f'{source} holds no tensors{f": {inside}" if inside else ""}')
    tensors = dict(found.pop(main)) if main is not None else {}
    if main:
        node = content
        for part in main.split('.'):
            node = node[part]
        _check_kinds(node, source)
    if main is None or others:
        for path, mapping in found.items():
            start = f'{path}.' if path else ''
            for key, tensor in mapping.items():
                tensors.setdefault(start + key, tensor)
    return tensors


def _mappings(content: Mapping, path: str = '', depth: int = DEPTH) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Where tensors stand in a nested mapping, and those that stand there. Numbered entries are no names of weights."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for key, value in content.items() if depth else ():
        if isinstance(key, str) and '.' not in key and isinstance(value, Mapping):
            yield from _mappings(value, f'{path}.{key}' if path else key, depth - 1)


def _main(found: Mapping[str, Mapping]) -> str | None:
    """Where the trained weights stand, if that is clear: under a known name, or at the only place with many tensors."""
    enough = SMALL * max(map(len, found.values()), default=0)
    large = [path for path, tensors in found.items() if len(tensors) >= enough]
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
