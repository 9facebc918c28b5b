"""Our configs as bases of other people's: ``_base_ = 'mmext_backbones::elsa_swin_t_maskrcnn_1x.py'``."""

import functools
from collections.abc import Callable
from importlib import import_module

from mmengine.config.utils import MODULE2PACKAGE

PACKAGE = 'mmext_backbones'


def register_bases() -> None:
    """Let mmengine find configs by ``mmext_backbones::`` names, from when the package is imported.

    mmengine (0.10.7) knows a fixed list of packages, and of them only configs in subfolders; ours lie at the top.
    """
    # It looks for a distribution of the name first, whose folder is not the package's where the package is installed
    # as a link. A module's folder is.
    MODULE2PACKAGE.setdefault(PACKAGE, f'{PACKAGE}.registry')
    for user in ('mmengine.config.config', 'mmengine.hub.hub'):
        module = import_module(user)
        function = getattr(module, '_get_package_and_cfg_path', None)
        if function is not None and not hasattr(function, '__wrapped__'):
            module._get_package_and_cfg_path = _with_ours(function)


def _with_ours(function: Callable[[str], tuple[str, str]]) -> Callable[[str], tuple[str, str]]:
    @functools.wraps(function)
    def get_package_and_cfg_path(name: str) -> tuple[str, str]:
        package, _, path = name.partition('::')
        if package == PACKAGE and path and '::' not in path:
            return MODULE2PACKAGE[package], path
        return function(name)

    return get_package_and_cfg_path
