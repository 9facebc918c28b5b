"""Where Python looks for ``mmcv._ext`` when there is no compiled one."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ['EXTENSION', 'ExtensionFinder', 'register_finder']

EXTENSION = 'mmcv._ext'


class ExtensionFinder(MetaPathFinder, Loader):
    """Answers to ``mmcv._ext`` alone. It stands last in `sys.meta_path`, so any installed one is found before it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, origin=__package__) if fullname == EXTENSION else None

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        import_module('.extension', __package__).fill(module)


def register_finder() -> None:
    """Puts the finder at the end of `sys.meta_path`, once."""
    if not any(isinstance(finder, ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.append(ExtensionFinder())
