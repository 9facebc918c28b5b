"""A config as the short child of another: what differs, written as a person would."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

__all__ = ['child_config', 'difference', 'unscoped', 'written']

WIDTH = 120
REMOVED = object()


def difference(old: Mapping, new: Mapping) -> dict[str, Any]:
    """What a child of `old` has to say to be `new`.

    A dict whose `type` changes, or that loses a key, is written whole with `_delete_=True`; lists are whole always.
    """
    changes = {}
    for key, value in new.items():
        before = old.get(key, REMOVED)
        if _same(before, value):
            continue
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            replaced = before.get('type') != value.get('type') or set(before) - set(value)
            changes[key] = {'_delete_': True, **value} if replaced else difference(before, value)
        else:
            changes[key] = value
    return changes


def child_config(original: str, old: Config, new: Config, path: Path, comment: str) -> str:
    """The text of a config at `path` that inherits `original` and is `new`.

    Args:
        original: A path, or a name like ``mmdet::...``.
        old: The config of that name.
        new: What the child is to be.
        path: Where the text will stand; the base is named from there.
        comment: Its first line.

    Raises:
        ValueError: if `original` is Python-style and cannot be imported from there.
    """
    changes = difference(old.to_dict(), new.to_dict())
    lines = [f'# {comment}']
    if '::' not in original and Config._is_lazy_import(original):
        lines += ['from mmengine.config import read_base', '', 'with read_base():']
        lines += [f'    from {_module(original, path)} import *  # noqa: F403', '']
        for key, value in changes.items():
            if isinstance(value, dict) and key in old:
                lines.append(f'{key}.merge({written(value, len(key) + 8)})  # noqa: F405')
            else:
                lines.append(f'{key} = {written(value, len(key) + 3)}')
        return '\n'.join(lines) + '\n'
    base = original
    if '::' not in original:
        base = Path(os.path.relpath(Path(original).resolve(), path.resolve().parent)).as_posix()
    lines.append(f'_base_ = {base!r}')
    lines += [f'{key} = {written(value, len(key) + 3)}' for key, value in changes.items()]
    return '\n'.join(lines) + '\n'


def _module(original: str, path: Path) -> str:
    """A Python-style config as a module relative to the file that inherits it."""
    parts = Path(os.path.relpath(Path(original).resolve().with_suffix(''), path.resolve().parent)).parts
    names = [part for part in parts if part != '..']
    if not all(name.isidentifier() for name in names):
        raise ValueError(f'a Python-style config is inherited as a module, and {".".join(names)} is no name of one')
    return '.' * (1 + parts.count('..')) + '.'.join(names)


def written(value: Any, used: int = 0, indent: int = 0) -> str:
    """A value as source: on one line if it fits behind `used` columns, else an item a line.

    A class, as Python-style configs hold them, is written by its dotted name.
    """
    if isinstance(value, type) or callable(value):
        return repr(f'{value.__module__}.{value.__qualname__}')
    if isinstance(value, Mapping):
        named = all(isinstance(key, str) and key.isidentifier() for key in value)
        opening, closing = ('dict(', ')') if named else ('{', '}')
        items = [(f'{key}=' if named else f'{key!r}: ', item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        opening, closing = '[]' if isinstance(value, list) else '()'
        items = [('', item) for item in value]
    else:
        return repr(value)
    short = ', '.join(prefix + written(item, -(10**6)) for prefix, item in items)
    if isinstance(value, tuple) and len(items) == 1:
        short += ','
    nested = any(isinstance(item, Mapping) and len(item) > 1 for _, item in items)
    if used < 0 or (used + len(opening + short + closing) <= WIDTH and not (nested and indent < 4)):
        return opening + short + closing
    inner = ' ' * (indent + 4)
    lines = [f'{inner}{prefix}{written(item, indent + 5 + len(prefix), indent + 4)},' for prefix, item in items]
    return '\n'.join([opening, *lines, ' ' * indent + closing])


def unscoped(value: Any) -> Any:
    """Without `_scope_`, which mmengine writes into every dict of a base of another library."""
    if isinstance(value, Mapping):
        return {key: unscoped(item) for key, item in value.items() if key != '_scope_'}
    return type(value)(map(unscoped, value)) if isinstance(value, (list, tuple)) else value


def _same(a: Any, b: Any) -> bool:
    """Equality that tells a tuple from a list, and 1 from True."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return isinstance(a, list) == isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b
