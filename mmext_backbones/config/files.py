"""Reads configs; errors name the file, the line and the nearest known names.

mmengine reads a config by running it, in several ways, from copies, base after base. Its errors tell what failed and
rarely where, so the file and the line are looked up in the traceback.
"""

import ast
import difflib
import os
import sysconfig
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import Any

import mmengine
from mmengine.config import Config
from mmengine.config.config import BASE_KEY
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config

from ..utils.errors import UserError, did_you_mean
from .bases import PACKAGE, package_folder

__all__ = ['full_name', 'load_config', 'local_bases', 'own_configs']

SUFFIXES = ('.py', '.json', '.yaml', '.yml')
LONGEST = 400  # letters of a message of mmengine's that are shown
READERS = ('_is_lazy_import', '_file2dict', '_parse_lazy_import')  # of mmengine: each has a file's name in `filename`


class FormattedOnce(Config):
    """A config that formats its text once: that takes a second, and a runner of mmengine asks for it five times."""

    @classmethod
    def of(cls, cfg: Config) -> Config:
        """The same config, of this class."""
        other = cls.__new__(cls)
        other.__dict__.update(cfg.__dict__)
        return other

    @property
    def pretty_text(self) -> str:
        content = repr(self._cfg_dict)
        if content not in _formatted:
            text = super().pretty_text
            _formatted.clear()
            _formatted[content] = text
        return _formatted[content]


_formatted: dict[str, str] = {}  # the config that was written last: its content, its text


def load_config(config: str) -> Config:
    """Reads a config file, or one of an installed library by its ``library::path`` name, of this package by its own.

    Raises:
        UserError: if there is no such file, or it is no config; with the file and the line, where they are known.
    """
    name = full_name(str(config))
    read = _library_config if '::' in name else _file
    try:
        with warnings.catch_warnings():  # of setuptools about an import of mmengine (0.10.7)
            warnings.filterwarnings('ignore', message='pkg_resources is deprecated')
            return FormattedOnce.of(read(name))
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(f'config {name!r} cannot be read: it ends the program ({type(error).__name__})') from error
    except Exception as error:  # whatever a config does wrong: it is a program
        raise UserError(f'config {name!r} cannot be read: {_told(error, name)}') from error


def full_name(name: str) -> str:
    """A config of this package for its bare name, or its path in a checkout, where there is no such file here."""
    stem = name.removeprefix('configs/').removesuffix('.py')
    own = f'{PACKAGE}::{stem}.py'
    packaged = not os.path.lexists(name) and '/' not in stem and '::' not in stem and stem in own_configs()
    return own if packaged else name


def own_configs() -> list[str]:
    """The names of the configs that come with this package."""
    return sorted(path.stem for path in (package_folder(PACKAGE) / '.mim' / 'configs').glob('*.py'))


def _circle(files: list[str], sound: set[str]) -> list[str]:
    """The files of a circle of bases, which mmengine would follow for minutes; empty if there is none.

    Args:
        files: A file, after those that inherit it.
        sound: Files that lead to no circle; more are added.
    """
    for base in local_bases(files[-1]):
        if base in files:
            return [os.path.relpath(file) for file in (*files[files.index(base) :], base)]
        found = [] if base in sound else _circle([*files, base], sound)
        if found:
            return found
    sound.add(files[-1])
    return []


def local_bases(file: str) -> list[str]:
    """Paths that a config file inherits, without those of libraries; what is wrong with it is found later."""
    try:
        names = _bases_of_python(file) if file.endswith('.py') else mmengine.load(file).get(BASE_KEY, [])
    except Exception:  # whatever is in the file
        return []
    names = [name for name in (names if isinstance(names, (list, tuple)) else [names]) if isinstance(name, str)]
    return [os.path.abspath(os.path.join(os.path.dirname(file), name)) for name in names if '::' not in name]


def _bases_of_python(file: str) -> list[Any]:
    """What stands under ``_base_``, or the files that are imported ``with read_base()``."""
    names = []
    for node in ast.parse(Path(file).read_text(encoding='utf-8')).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == BASE_KEY:
            value = ast.literal_eval(node.value)
            names += value if isinstance(value, (list, tuple)) else [value]
        elif isinstance(node, ast.With) and 'read_base' in ast.unparse(node.items[0]):
            imports = [each for each in node.body if isinstance(each, ast.ImportFrom) and each.level and each.module]
            names += [f'{"../" * (each.level - 1)}{each.module.replace(".", "/")}.py' for each in imports]
    return names


def _library_config(name: str) -> Config:
    wrong = _wrong_name(name)
    if wrong:
        raise UserError(f'config {name!r} cannot be found in the installed libraries: {wrong}')
    return get_config(name)


def _file(name: str) -> Config:
    path = Path(name)
    if path.is_dir():
        raise UserError(f'config {name!r} is a folder: name a file in it.')
    if not path.is_file():
        known = [str(other) for other in sorted(path.parent.glob('*.py'))] if path.parent.is_dir() else []
        known += own_configs() if path.suffix in ('', '.py') else []
        raise UserError(f'config {name!r}: there is no such file.{did_you_mean(name, known)}')
    if path.suffix not in SUFFIXES:
        raise UserError(f'config {name!r} is no config: expected a file that ends in {", ".join(SUFFIXES)}.')
    circle = _circle([os.path.abspath(name)], set())
    if circle:
        raise UserError(f'config {name!r} cannot be read: its bases are a circle: {" -> ".join(circle)}')
    return Config.fromfile(name)


# --------------------------------------------------------------------------------------------------------------------
# Names of libraries


def _wrong_name(name: str) -> str | None:
    """What is wrong with ``library::path``, or None."""
    library, _, path = name.partition('::')
    if library not in MODULE2PACKAGE:
        return f'mmengine knows no library {library!r}.{did_you_mean(library, list(MODULE2PACKAGE))}'
    package = package_folder(library)
    if package is None:
        return f'{MODULE2PACKAGE[library]} is not installed.'
    folder = package / '.mim' / 'configs'
    if not folder.is_dir() or (folder / path).is_file():
        return None  # mmengine will say what else is wrong
    return f'{library} has no config {path!r}.{_nearest(path, folder, f"{library}::")}'


def _nearest(path: str, folder: Path, prefix: str = '') -> str:
    """The names in a folder of configs that are nearest to `path`: by their last parts, then by their folders."""
    known: dict[str, list[str]] = {}
    for other in sorted(folder.rglob('*.py')):
        known.setdefault(other.name, []).append(prefix + other.relative_to(folder).as_posix())
    wanted = Path(path).name
    names = difflib.get_close_matches(wanted if wanted.endswith('.py') else f'{wanted}.py', list(known), n=3)
    found = [each for name in names for each in difflib.get_close_matches(prefix + path, known[name], cutoff=0)][:3]
    return f' Did you mean {" or ".join(map(repr, found))}?' if found else ''


# --------------------------------------------------------------------------------------------------------------------
# Where a config is wrong


def _told(error: Exception, name: str) -> str:
    """The place in a config and what is wrong there, in one paragraph."""
    if isinstance(error, ModuleNotFoundError) and error.name == 'pkg_resources':
        return (
            'mmengine finds the configs of installed libraries with pkg_resources, which setuptools 82 removed: '
            'pip install "setuptools<82".'
        )
    frames = list(traceback.walk_tb(error.__traceback__))
    readers = [frame for frame, _ in frames if frame.f_code.co_name in READERS and 'filename' in frame.f_locals]
    files = [os.path.abspath(frame.f_locals['filename']) for frame in readers] or [os.path.abspath(name)]
    if isinstance(error, ImportError) and 'custom modules' in str(error):
        return _custom_import(error)
    if isinstance(error, SyntaxError):
        file = error.filename if os.path.isfile(error.filename or '') else files[-1]
        return f'{_place(file, error.lineno, name)}{type(error).__name__}: {error.msg}'
    missing = _missing_base(frames, files, name)
    if missing:
        return missing
    text = ' '.join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    what = f'{type(error).__name__}: {text[:LONGEST]}' if text else type(error).__name__
    ran = [(os.path.abspath(frame.f_code.co_filename), line) for frame, line in reversed(frames)]
    place = next((place for place in ran if place[0] in files), None)
    place = place or next((place for place in ran if _own(place[0])), (files[-1], None))  # a module that it imports
    return _place(*place, name) + what


def _place(file: str, line: int | None, name: str) -> str:
    """``'mine.py, line 3: '``; the file goes without saying where it is the config that was asked for."""
    parts = [] if os.path.abspath(file) == os.path.abspath(name) else [os.path.relpath(file)]
    parts += [f'line {line}'] if line else []
    return f'{", ".join(parts)}: ' if parts else ''


def _missing_base(frames: list[tuple[FrameType, int]], files: list[str], name: str) -> str | None:
    """For a base that is not there: who names it, and what is near."""
    for frame, _ in reversed(frames):
        if frame.f_code.co_name == '_get_cfg_path':
            library, path = frame.f_locals.get('scope'), frame.f_locals['cfg_path']
            if not isinstance(path, str):
                line = _line_of(files[-1], '_base_')
                return f'{_place(files[-1], line, name)}_base_ is {path!r}: expected a text or a list of texts'
            base = path if '::' in path else f'{library}::{path}'
            wrong = _wrong_name(base) if library else None
            return f'{_place(files[-1], _line_of(files[-1], base), name)}its base {base!r}: {wrong}' if wrong else None
    base, by = files[-1], next((file for file in reversed(files) if file != files[-1]), files[-1])
    for frame, _ in frames:
        if frame.f_code.co_name == '_parse_lazy_import' and 'module_path' in frame.f_locals:
            base, by = os.path.abspath(frame.f_locals['module_path']), os.path.abspath(frame.f_locals['filename'])
    if os.path.isfile(base) or base == by:
        return None
    folder, file = os.path.split(base)
    near = difflib.get_close_matches(file, [other.name for other in Path(folder).glob('*.py') if str(other) != by], n=1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    line = _line_of(by, file) or _line_of(by, f'{Path(file).stem} import')
    return f'{_place(by, line, name)}its base {os.path.relpath(base)} is not there.{hint}'


def _line_of(file: str, text: str) -> int | None:
    """The first line of a file that names something."""
    lines = Path(file).read_text(encoding='utf-8').splitlines()
    return next((number for number, line in enumerate(lines, 1) if text in line), None)


def _custom_import(error: ImportError) -> str:
    """mmengine hides which module failed, and why, behind the whole of `sys.path`."""
    failed = error.__cause__
    module = str(failed).removeprefix('Failed to import ')
    why = failed.__context__ or failed
    absent = isinstance(why, ModuleNotFoundError) and f'{module}.'.startswith(f'{why.name}.')
    hint = ' Has PYTHONPATH the folder that holds it?' if absent else ''
    return f'its custom_imports name {module!r}, which cannot be imported: {type(why).__name__}: {why}.{hint}'


def _own(file: str) -> bool:
    """Whether a file is the user's: neither Python's, nor installed, nor ours."""
    installed = [sysconfig.get_path(name) for name in ('stdlib', 'platstdlib', 'purelib', 'platlib')]
    roots = [os.path.abspath(root) for root in (*installed, Path(__file__).parents[1])]
    return os.path.isfile(file) and not any(file.startswith(root + os.sep) for root in roots)
