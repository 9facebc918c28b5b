"""Configs of installed packages as bases: ``_base_ = 'mmext_backbones::elsa_swin_t_maskrcnn_1x.py'``.

mmengine finds a package by the name of its distribution, which is not the same everywhere: ``mmseg`` is of
mmsegmentation, or of a fork. Here packages are found as modules, which have the same name in all of them.
"""

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.config.utils import MODULE2PACKAGE

PACKAGE = 'mmext_backbones'


def register_bases() -> None:
    """Let mmengine find configs by module names, ours among them, from when the package is imported.

    mmengine (0.10.7) knows a fixed list of packages, and of them only configs in subfolders; ours lie at the top.
    """
    # It looks for a distribution of the name first, whose folder is not the package's where the package is installed
    # as a link. A module's folder is.
    MODULE2PACKAGE.setdefault(PACKAGE, f'{PACKAGE}.registry')
    for user in ('mmengine.config.config', 'mmengine.hub.hub'):
        module = import_module(user)
        function = getattr(module, '_get_package_and_cfg_path', None)
        if function is not None and not hasattr(function, '__wrapped__'):
            module._get_package_and_cfg_path = _by_module(function)


def package_folder(library: str) -> Path | None:
    """Where a package lies, without importing it; None if it is not there."""
    try:
        spec = find_spec(library)
    except (ImportError, ValueError):  # half a module in sys.modules
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _by_module(function: Callable[[str], tuple[str, str]]) -> Callable[[str], tuple[str, str]]:
    @functools.wraps(function)
    def get_package_and_cfg_path(name: str) -> tuple[str, str]:
        library, _, path = name.partition('::')
        if library == PACKAGE and path and '::' not in path:
            return MODULE2PACKAGE[library], path
        package, path = function(name)
        return (library if package_folder(library) else package), path

    return get_package_and_cfg_path
