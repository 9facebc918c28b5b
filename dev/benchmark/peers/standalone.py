"""mmdet's Swin where mmdet is installed but mmcv has no compiled operators.

`import mmdet.models` imports every detector and with them the compiled operators of mmcv. The backbone's own file
needs `mmcv.cnn` and one file of layers, which are plain Python. Those two files are imported under their own names,
with empty packages standing in for the ones whose `__init__` would import all the rest.
"""

import functools
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['mmdet_swin']

PACKAGES = ('mmdet.models', 'mmdet.models.layers', 'mmdet.models.layers.transformer', 'mmdet.models.backbones')


@functools.cache
def mmdet_swin() -> types.ModuleType:
    """The module mmdet.models.backbones.swin, from the package where that can be imported, else on its own.

    Raises:
        ImportError: where there is no mmdet, or no mmcv.
    """
    try:
        importlib.import_module('mmcv.ops')  # not half of mmdet.models, whose layers would be registered twice
        return importlib.import_module('mmdet.models.backbones.swin')
    except ImportError:
        if importlib.util.find_spec('mmdet') is None or importlib.util.find_spec('mmcv') is None:
            raise
    root = Path(importlib.import_module('mmdet').__file__).parent
    with _empty_packages(root):
        layers = importlib.import_module('mmdet.models.layers.transformer.utils')
        sys.modules['mmdet.models.layers'].PatchEmbed = layers.PatchEmbed
        sys.modules['mmdet.models.layers'].PatchMerging = layers.PatchMerging
        return importlib.import_module('mmdet.models.backbones.swin')


@contextmanager
def _empty_packages(root: Path) -> Iterator[None]:
    """Inside, `PACKAGES` are importable without their `__init__`; afterwards as before."""
    before = {name: module for name, module in sys.modules.items() if name.startswith('mmdet.models')}
    for name in before:
        del sys.modules[name]
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split('.')[1:]))]
        sys.modules[name] = package
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.startswith('mmdet.models')]:
            del sys.modules[name]
        sys.modules.update(before)
