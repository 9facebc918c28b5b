"""The components that mmengine, mmdet, mmsegmentation and mmpretrain register."""

import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from typing import NamedTuple

from mmengine import registry as root
from mmengine.registry import Registry

__all__ = ['REGISTRIES', 'Component', 'import_libraries', 'walk']

REGISTRIES = ('DATASETS', 'DATA_SAMPLERS', 'METRICS', 'EVALUATOR', 'HOOKS', 'LOOPS', 'RUNNERS')
LIBRARIES = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
PARTS = ('datasets', 'evaluation', 'engine', 'models', 'visualization')


class Component(NamedTuple):
    """A registered class."""

    registry: str
    library: str
    name: str  # with its scope, as a config writes it
    cls: type
    as_installed: bool  # registered by its library without an import of its module by name

    @property
    def short(self) -> str:
        return self.name.rpartition('.')[2]

    @property
    def key(self) -> str:
        return f'{self.registry}/{self.name}'


def import_libraries() -> None:
    """Registers what the libraries register when they are imported."""
    warnings.filterwarnings('ignore')
    for library in ('mmdet', 'mmseg', 'mmpretrain'):
        for part in PARTS:
            importlib.import_module(f'{library}.{part}')
    importlib.import_module('mmcv.cnn.rfsearch')


def walk() -> list[Component]:
    """Every component of the libraries, in the order of registries, libraries and names.

    mmpretrain leaves its multimodal data sets out unless further packages are there, which they hardly need: they are
    imported by name.
    """
    import_libraries()
    known = {(registry, name) for registry, name, _ in _registered()}
    for module in pkgutil.iter_modules(importlib.import_module('mmpretrain.datasets').__path__):
        importlib.import_module(f'mmpretrain.datasets.{module.name}')
    found = [
        Component(registry, library, name, cls, (registry, name) in known)
        for registry, name, cls in _registered()
        if inspect.isclass(cls) and (library := cls.__module__.partition('.')[0]) in LIBRARIES
    ]
    return sorted(found, key=lambda c: (REGISTRIES.index(c.registry), LIBRARIES.index(c.library), c.name))


def _registered() -> Iterator[tuple[str, str, type]]:
    for registry in REGISTRIES:
        yield from ((registry, name, cls) for name, cls in _entries(getattr(root, registry)))


def _entries(registry: Registry) -> Iterator[tuple[str, type]]:
    for name, cls in registry.module_dict.items():
        yield f'{registry.scope}.{name}', cls
    for child in registry.children.values():
        yield from _entries(child)
