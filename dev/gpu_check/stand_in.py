"""Imports of this checkout where mmengine is missing: the package as a bare one, and a shadow of mmengine."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = Path(__file__).parents[2] / 'mmext_backbones'
MODULES = ('dist', 'logging', 'model', 'model.weight_init', 'registry', 'runner', 'utils')


def stand_in() -> None:
    """Makes operators, layers and backbones importable; does nothing where the package is imported already."""
    if 'mmext_backbones' in sys.modules:
        return
    package = ModuleType('mmext_backbones')  # without what its __init__ registers with mmengine
    package.__path__ = [str(PACKAGE)]
    sys.modules['mmext_backbones'] = package
    try:
        import mmengine.registry  # noqa: F401
    except ImportError:
        for name in ('mmengine', *(f'mmengine.{module}' for module in MODULES)):
            sys.modules[name] = _Shadow(name)


class _Shadow(ModuleType):
    """A module that has whatever it is asked for: classes and functions that are named at import and not used here."""

    __path__: tuple = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        if name == 'BaseModule':
            return _base_module()
        if name == 'digit_version':
            return lambda version: tuple(map(int, re.findall(r'\d+', version)[:3]))
        return _Registry if name == 'Registry' else type(name, (_Registry,), {})


class _Registry:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.scope = ''

    def register_module(self, *args: Any, **kwargs: Any):
        return lambda cls: cls


def _base_module() -> type:
    from torch import nn

    class BaseModule(nn.Module):
        def __init__(self, init_cfg: Any = None) -> None:
            super().__init__()
            self.init_cfg = init_cfg

    return BaseModule
