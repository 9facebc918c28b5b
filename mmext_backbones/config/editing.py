"""Edits of a config, each remembered with the value before and after.

`ConfigEditor` makes them by dotted path; `walk` visits every dict of a config, `shorten` writes a value on one line.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

__all__ = ['NOT_SET', 'Change', 'ConfigEditor', 'plain', 'set_num_classes', 'shorten', 'type_name', 'walk']

# keys that `shorten` leaves out
_LEFT_OUT = ('type', 'pipeline', '_scope_', 'backend_args', 'filter_cfg', 'metainfo', 'test_mode')


class _NotSet:
    def __repr__(self) -> str:
        return '(not set)'


NOT_SET = _NotSet()


class Change(NamedTuple):
    """One edit: the dotted path in the config, the value before and the value after (`NOT_SET` for none)."""

    path: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f'{self.path}: {shorten(self.before)} -> {shorten(self.after)}'


class ConfigEditor:
    """Edits a config by dotted paths and remembers what changed.

    Attributes:
        cfg: The config being edited.
        changes: The edits so far, in order; setting a value to what it is already leaves no trace.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.changes: list[Change] = []

    def get(self, path: str) -> Any:
        """The value at `path`, or `NOT_SET`."""
        node = self.cfg
        for key in path.split('.'):
            if isinstance(node, (list, tuple)):
                if not (key.isdigit() and int(key) < len(node)):
                    return NOT_SET
                node = node[int(key)]
            elif isinstance(node, (dict, Config)) and key in node:
                node = node[key]
            else:
                return NOT_SET
        return node

    def set(self, path: str, value: Any) -> None:
        """Sets `path`, making the dicts on the way."""
        before = self.get(path)
        if plain(before) == plain(value):
            return
        parent = self._parent(path)
        parent[_key(parent, path)] = ConfigDict(value=value).value  # nested dicts become ConfigDicts
        self.changes.append(Change(path, before, value))

    def drop(self, path: str) -> None:
        """Removes `path` if it is there."""
        before = self.get(path)
        if before is NOT_SET:
            return
        parent = self._parent(path)
        key = _key(parent, path)
        if isinstance(parent, Config):
            parent._cfg_dict.pop(key)
        else:
            parent.pop(key)
        self.changes.append(Change(path, before, NOT_SET))

    def set_key(self, path: str, node: dict, key: str, value: Any) -> None:
        """Sets a key of `node`, which lies at `path`, where keys have dots in them, as `custom_keys` do."""
        before = node[key]
        node[key] = value
        self.changes.append(Change(f'{path}.{key}', before, value))

    def _parent(self, path: str) -> Any:
        node = self.cfg
        for key in path.split('.')[:-1]:
            if isinstance(node, (list, tuple)):
                node = node[int(key)]
                continue
            if not isinstance(node.get(key), (dict, list, tuple)):
                node[key] = ConfigDict()
            node = node[key]
        return node


def walk(node: Any, path: str = '') -> Iterator[tuple[str, dict]]:
    """Every dict inside `node` with its dotted path, outermost first."""
    if isinstance(node, dict):
        yield path, node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in list(children):
        yield from walk(child, f'{path}.{key}' if path else str(key))


def shorten(value: Any, width: int = 100) -> str:
    """A value on one line: pipelines as the names of their transforms, long things cut."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, dict) and 'type' in item for item in value):
        text = f'[{", ".join(map(_step, value))}]'
        width = max(width, 140)
    elif isinstance(value, dict) and 'type' in value:
        inner = (f'{key}={shorten(item, 60)}' for key, item in value.items() if key not in _LEFT_OUT)
        text = f'{type_name(value)}({", ".join(inner)})'
    else:
        text = re.sub(r'\s+', ' ', repr(plain(value) if value is not NOT_SET else value))
    return text if len(text) <= width else text[: width - 4].rstrip(', ') + ' ...'


def _step(node: dict) -> str:
    """A transform by its name, with its size if it has one."""
    size = node.get('scale', node.get('crop_size'))
    return type_name(node) + ('' if size is None else f'({size})'.replace('((', '(').replace('))', ')'))


def set_num_classes(editor: ConfigEditor, num: int, skip: str | None = None) -> None:
    """`num_classes` wherever a head, a loss or a preprocessor states it, and per-class weights with it."""
    for top in ('model', 'data_preprocessor'):
        for path, node in walk(editor.cfg.get(top) or {}, top):
            if path.startswith('model.backbone') or (skip and re.search(skip, path)):
                continue
            old = node.get('num_classes')
            if isinstance(old, int) and old > 0:
                editor.set(f'{path}.num_classes', num)
                if isinstance(node.get('out_channels'), int) and node['out_channels'] in (1, old):
                    editor.set(f'{path}.out_channels', num)
                    editor.drop(f'{path}.threshold')
            weight = node.get('class_weight')
            if isinstance(weight, (list, tuple)):
                # mask transformers weigh "no object" too, as the last entry
                tail = [weight[-1]] if weight[-1] != weight[0] and len(set(weight[:-1])) == 1 else []
                editor.set(f'{path}.class_weight', [1.0] * num + tail)


def plain(value: Any) -> Any:
    """Config types as plain ones, tuples as lists, without mmengine's notes, so that equal values compare equal."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != '_scope_'}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _key(parent: Any, path: str) -> Any:
    key = path.rpartition('.')[2]
    return int(key) if isinstance(parent, (list, tuple)) else key


def type_name(config: Any) -> str:
    """The class a config names, without its scope; `type` is a string, or in Python-style configs the class."""
    cls = config.get('type') if isinstance(config, Mapping) else None
    if cls is None:
        return ''
    return cls.rpartition('.')[2] if isinstance(cls, str) else getattr(cls, '__name__', '')
