"""Faults to put into configs, for `broken_files.py`.

A fault takes a random generator, a good config as a dict of plain values, and a folder; it returns the path of the file
to be read, in that folder.
"""

import copy
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ['TEXTS', 'VALUES', 'mutate', 'text_of']

TEXTS: dict[str, Callable[[random.Random, str, Path], Path]] = {}


def text_of(cfg: dict[str, Any]) -> str:
    text = ''.join(f'{key} = {value!r}\n' for key, value in cfg.items())
    return re.sub(r'\bnan\b', 'float("nan")', text)


def broken_text(name: str) -> Callable:
    def register(function: Callable) -> Callable:
        TEXTS[name] = function
        return function

    return register


def written(folder: Path, content: str | bytes, name: str = 'case.py') -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --------------------------------------------------------------------------------------------------------------------
# Files that are no config


@broken_text('cut')
def cut(rng, text, folder):
    line = text.splitlines()[rng.randrange(3, 12)]
    return written(folder, text[: text.index(line) + len(line) // 2])


@broken_text('a character taken out')
def taken_out(rng, text, folder):
    places = [i for i, letter in enumerate(text) if letter in '{}[]()=']
    place = rng.choice(places)
    return written(folder, text[:place] + text[place + 1 :])


@broken_text('a character put in')
def put_in(rng, text, folder):
    place = rng.randrange(len(text))
    return written(folder, text[:place] + rng.choice('({[\n\'"\t$') + text[place:])


@broken_text('bytes')
def random_bytes(rng, text, folder):
    return written(folder, rng.randbytes(300))


@broken_text('zeros inside')
def null_bytes(rng, text, folder):
    place = rng.randrange(len(text))
    return written(folder, text[:place].encode() + b'\0\0' + text[place:].encode())


@broken_text('latin-1')
def latin(rng, text, folder):
    return written(folder, 'note = "Größe"\n'.encode('latin-1') + text.encode())


@broken_text('empty')
def empty(rng, text, folder):
    return written(folder, b'')


@broken_text('a comment alone')
def comment(rng, text, folder):
    return written(folder, '# nothing here\n')


@broken_text('a folder')
def a_folder(rng, text, folder):
    (folder / 'case.py').mkdir()
    return folder / 'case.py'


@broken_text('no file')
def absent(rng, text, folder):
    return folder / 'csae.py'


@broken_text('a suffix of another kind')
def suffix(rng, text, folder):
    return written(folder, text, rng.choice(['case.txt', 'case', 'case.cfg', 'case.pth']))


@broken_text('JSON')
def broken_json(rng, text, folder):
    return written(folder, rng.choice(['{', '[]', '3', '{"model": }', 'null', '"x"', '{"a": 1}']), 'case.json')


@broken_text('YAML')
def broken_yaml(rng, text, folder):
    content = rng.choice(['a: [', '- 1\n- 2', '3', 'model: {', '\t- a', '!!python/object/apply:os.getcwd []'])
    return written(folder, content, rng.choice(['case.yaml', 'case.yml']))


ERRORS = ['1 / 0', 'undefined', 'import not_there', 'raise SystemExit(0)', 'exit()', 'assert False', 'raise ValueError']
ERRORS += ['from os import not_there', 'def f(): return f()\nf()', 'x = dict(**{1: 2})', 'open("not/there")']


@broken_text('an error of its own')
def raising(rng, text, folder):
    line = rng.choice(ERRORS)
    return written(folder, f'{text}\n{line}\n')


BASES = ['not_there.py', 'case.py', '../case.py', 'mmdet::not/there.py', 'nolib::x.py', 3, ['case.py'], [3], {'a': 1}]
BASES += ['', [], None, 'other.txt', ['a.py', 'a.py'], 'mmdet::', '::x', '/']


@broken_text('bases')
def bases(rng, text, folder):
    base = rng.choice(BASES)
    written(folder, 'a = 1\n', 'a.py')
    return written(folder, f'_base_ = {base!r}\n{text}')


@broken_text('a circle of bases')
def circle(rng, text, folder):
    names = [f'part{index}.py' for index in range(rng.randint(1, 4))]
    for name, after in zip(names, [*names[1:], 'case.py'], strict=True):
        written(folder, f'_base_ = {after!r}\n', name)
    return written(folder, f'_base_ = {names[0]!r}\n')


@broken_text('two bases with one key')
def same_key(rng, text, folder):
    written(folder, text, 'one.py')
    written(folder, 'model = dict(type="X")\n', 'two.py')
    return written(folder, "_base_ = ['one.py', 'two.py']\n")


@broken_text('a base that is broken')
def broken_base(rng, text, folder):
    written(folder, text + '\nx = (\n', 'one.py')
    return written(folder, "_base_ = 'one.py'\n")


REFERENCES = ['a = {{_base_.not_there}}', "a = '{{ fileNme }}'", 'a = _base_.model.not_there', 'a = {{_base_}}']
REFERENCES += ["a = '{{$NOT_SET}}'"]


@broken_text('references to nothing')
def references(rng, text, folder):
    written(folder, text, 'one.py')
    line = rng.choice(
        [
            'a = {{_base_.not_there}}',
            "a = '{{ fileNme }}'",
            'a = _base_.model.not_there',
            'a = {{_base_}}',
            "a = '{{$NOT_SET}}'",
        ]
    )
    return written(folder, f"_base_ = 'one.py'\n{line}\n")


@broken_text('imports of its own')
def custom_imports(rng, text, folder):
    value = rng.choice([{'imports': 'not.there'}, {'imports': [3]}, 'x', {}, {'imports': ['os', 'nope']}, 3])
    return written(folder, f'{text}\ncustom_imports = {value!r}\n')


@broken_text('deleting what is not there')
def deleting(rng, text, folder):
    written(folder, text, 'one.py')
    line = rng.choice(["model = 3", "train_dataloader = [1]", "model = dict(_delete_=3, backbone=1)", "_delete_ = True",
                       "model = dict(_delete_=True)", "param_scheduler = {'9': dict(a=1)}"])  # fmt: skip
    return written(folder, f"_base_ = 'one.py'\n{line}\n")


LAZY = ['from .not_there import *', 'import not_there', 'from not_there.x import *', 'from case import *', '1 / 0']


@broken_text('lazy')
def lazy(rng, text, folder):
    line = rng.choice(LAZY)
    return written(
        folder, f'from mmengine.config import read_base\n\nwith read_base():\n    {line}\n\nmodel = dict()\n'
    )


# --------------------------------------------------------------------------------------------------------------------
# Values

TYPES = ['NotThere', '', 3, ['a'], 'mmdet.', '.x', 'mmdet.NotThere', 'os.system', 'ResNet', 'Adam']
TYPES += ['mmext_backbones.SwinTransfomer']
DICTS = [{}, {'a': 1}, {'type': 'NotThere'}, {'type': 3}, {'type': None}, {'type': 'Linear'}]


def other_kind(rng: random.Random, old: Any) -> Any:
    return 'seven' if isinstance(old, (int, float)) else rng.choice([7, 1.5])


def other_type(rng: random.Random, old: Any) -> Any:
    return {**old, 'type': rng.choice(TYPES)} if isinstance(old, dict) else rng.choice(DICTS)


def unknown_key(rng: random.Random, old: Any) -> Any:
    if isinstance(old, dict):
        return {**old, rng.choice(['not_a_key', 'tpye', 'x.y', '1']): rng.choice([1, {}, 'x'])}
    return [*old, {'type': 'NotThere'}] if isinstance(old, list) else [old, old]


def key_taken_out(rng: random.Random, old: Any) -> Any:
    if not isinstance(old, dict) or not old:
        return None
    lost = rng.choice([*old, 'type'])
    return {key: value for key, value in old.items() if key != lost}


VALUES: dict[str, Callable[[random.Random, Any], Any]] = {
    'None': lambda rng, old: None,
    'a value of another kind': other_kind,
    'a negative number': lambda rng, old: -abs(old) - 1 if isinstance(old, (int, float)) else -1,
    'zero': lambda rng, old: 0,
    'a huge number': lambda rng, old: 10**30,
    'not a number': lambda rng, old: float('nan'),
    'a text': lambda rng, old: rng.choice(['', 'abc', str(old)[:40], '1', 'None']),
    'a list': lambda rng, old: rng.choice([[], [1], ['a'], [old], [None]]),
    'a dict': lambda rng, old: rng.choice(DICTS),
    'true or false': lambda rng, old: not old,
    'another type name': other_type,
    'an unknown key': unknown_key,
    'a key taken out': key_taken_out,
}
# keys whose values are the user's own affair, or would make the trial itself run away
LEFT_ALONE = ('work_dir', 'data_root', 'ann_file', 'data_prefix', 'max_iters', 'max_epochs')


def mutate(rng: random.Random, cfg: dict[str, Any]) -> tuple[dict[str, Any], str, str]:
    """A copy with one value changed: the config, the dotted key and what was done."""
    paths = [path for path in _paths(cfg) if path[-1] not in LEFT_ALONE]
    depth = rng.randint(1, 4)
    path = rng.choice([path for path in paths if len(path) <= depth])
    how = rng.choice(list(VALUES))
    cfg = copy.deepcopy(cfg)
    holder = cfg
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = VALUES[how](rng, holder[path[-1]])
    return cfg, '.'.join(map(str, path)), how


def _paths(node: Any, path: tuple = ()) -> Iterator[tuple]:
    if path:
        yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _paths(child, (*path, key))
