"""A module in mmcv's own folder that forwards ``mmcv._ext`` to this package, for programs that do not import it."""

from pathlib import Path

from ..utils.errors import UserError
from .showing import compiled_extension, mmcv_folder

__all__ = ['install', 'uninstall']

_MARK = 'Written by mmext_backbones.mmcv_ops.'
_FORWARDING = f'''"""mmcv's operators out of torchvision and PyTorch. {_MARK}

`python -m mmext_backbones.mmcv_ops --uninstall` removes this file.
"""

import sys

try:
    from mmext_backbones.mmcv_ops.extension import fill
except ModuleNotFoundError as error:
    if not str(error.name).startswith('mmext_backbones'):
        raise
    raise ImportError(
        f'mmcv has no compiled operators, and mmext_backbones, which stood in for them, is gone. '
        f'Install it again, or remove {{__file__}}'
    ) from error

fill(sys.modules[__name__])
'''


def install() -> str:
    """Writes the module; any program that imports `mmcv.ops` then finds the operators.

    Returns:
        A line that says what was done.

    Raises:
        UserError: where there is no mmcv, where it is compiled, or where its folder cannot be written.
    """
    folder = mmcv_folder()
    if folder is None:
        raise UserError('mmcv is not installed. Install it without operators: pip install "mmcv-lite==2.1.0"')
    compiled = compiled_extension()
    if compiled is not None:
        raise UserError(f'this mmcv is compiled ({compiled.origin}): it has its own operators, and they stay.')
    path = folder / '_ext.py'
    if path.exists() and not _is_ours(path):
        raise UserError(f'{path} is there already, and not from here: it stays. Remove it first, if it is to go.')
    part = path.with_name(f'{path.name}.part')
    try:
        part.write_text(_FORWARDING)
        part.replace(path)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}. Who installed mmcv can do it.') from error
    return f'{path} written. Before mmcv-lite is uninstalled: python -m mmext_backbones.mmcv_ops --uninstall'


def uninstall() -> str:
    """Removes the module.

    Returns:
        A line that says what was done.

    Raises:
        UserError: where the file is not ours, or cannot be removed.
    """
    folder = mmcv_folder()
    path = folder / '_ext.py' if folder else None
    if path is None or not path.exists():
        return 'Nothing to remove: there is no forwarding module.'
    if not _is_ours(path):
        raise UserError(f'{path} is not from here: it stays.')
    try:
        path.unlink()
    except OSError as error:
        raise UserError(f'{path} cannot be removed: {error.strerror}. Who installed mmcv can do it.') from error
    return f'{path} removed.'


def _is_ours(path: Path) -> bool:
    try:
        return _MARK in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False
