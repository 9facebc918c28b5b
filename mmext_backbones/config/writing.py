"""Writes a config as the short child of another: only what differs."""

import keyword
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.errors import UserError
from .files import full_name

__all__ = ['child_config', 'difference', 'unscoped', 'write_child', 'written']

WIDTH = 120
REMOVED = object()


def difference(old: Mapping, new: Mapping) -> dict[str, Any]:
    """What a child of `old` has to say to be `new`.

    A dict whose `type` changes, that loses a key, or that was no dict before, is written whole with `_delete_=True`;
    lists are whole always.
    """
    changes = {}
    for key, value in new.items():
        before = old.get(key, REMOVED)
        if _same(before, value):
            continue
        if before is REMOVED or not isinstance(value, Mapping):
            changes[key] = value
        elif isinstance(before, Mapping) and before.get('type') == value.get('type') and set(before) <= set(value):
            changes[key] = difference(before, value)
        else:
            changes[key] = {'_delete_': True, **value}
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
        ValueError: if `original` is Python-style and cannot be imported from there, or a value cannot be written.
    """
    changes = difference(old.to_dict(), new.to_dict())
    lines = [f'# {comment}']
    if '::' not in original and Config._is_lazy_import(original):
        lines += ['from mmengine.config import read_base', '', 'with read_base():']
        lines += [f'    from {_module(original, path)} import *  # noqa: F403', '']
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(old.get(key), Mapping):
                lines.append(f'{key}.merge({written(value, len(key) + 8)})  # noqa: F405')
            else:
                value = {k: v for k, v in value.items() if k != '_delete_'} if isinstance(value, dict) else value
                lines.append(f'{key} = {written(value, len(key) + 3)}')
        return '\n'.join(lines) + '\n'
    base = original
    if '::' not in original:
        base = Path(os.path.relpath(Path(original).resolve(), path.resolve().parent)).as_posix()
    lines.append(f'_base_ = {base!r}')
    lines += [f'{key} = {written(value, len(key) + 3)}' for key, value in changes.items()]
    return '\n'.join(lines) + '\n'


def write_child(config: str, old: Config, new: Config, out: Path, comment: str) -> None:
    """Writes the child, reads it again and compares it with `new`.

    Raises:
        UserError: if it reads otherwise, or no file there could inherit a Python-style config; nothing is left behind.
    """
    config = full_name(config)
    try:
        text = child_config(config, old, new, out, comment)
    except ValueError as error:
        raise UserError(f'{config}: {error}') from error
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix='child_', suffix='.py', delete=False) as file:
            file.write(text.encode())
    except OSError as error:
        raise UserError(f'{out} cannot be written: {error.strerror}.') from error
    draft = Path(file.name)
    try:
        read, wanted = (unscoped(each.to_dict()) for each in (Config.fromfile(str(draft)), new))
        different = difference(wanted, read) | difference(read, wanted)
        if different:
            raise UserError(f'the child would not read as the new config: {", ".join(different)} differ.')
        draft.chmod(0o666 & ~_umask())
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)


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

    Raises:
        ValueError: for a value that is no text of Python, such as an array.
    """
    if _named(value):
        return repr(f'{value.__module__}.{value.__qualname__}')
    if isinstance(value, Mapping):
        named = all(isinstance(key, str) and key.isidentifier() and not keyword.iskeyword(key) for key in value)
        opening, closing = ('dict(', ')') if named else ('{', '}')
        items = [(f'{key}=' if named else f'{key!r}: ', item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        opening, closing = '[]' if isinstance(value, list) else '()'
        items = [('', item) for item in value]
    else:
        return _literal(value)
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


def _literal(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, set, frozenset)):
        return repr(value)
    raise ValueError(
        f'{value!r} is a {type(value).__name__}, which cannot be written into another config; a number, a text or a '
        'list can'
    )


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return value.item() if type(value).__module__ == 'numpy' and getattr(value, 'ndim', None) == 0 else value


def _named(value: Any) -> bool:
    return isinstance(value, (type, Callable)) and hasattr(value, '__qualname__')


def _same(a: Any, b: Any) -> bool:
    """Equality that tells a tuple from a list, and 1 from True.

    Functions and classes of a config are others at every reading, and are told by their names.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return isinstance(a, list) == isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    a, b = _plain(a), _plain(b)
    if hasattr(a, 'tolist') and hasattr(b, 'tolist'):  # arrays
        return _same(a.tolist(), b.tolist())
    if _named(a) and _named(b):
        return (a.__module__, a.__qualname__) == (b.__module__, b.__qualname__)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return type(a) is type(b) and a == b


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
