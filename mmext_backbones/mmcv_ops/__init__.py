"""mmcv's operators out of torchvision and PyTorch, for an mmcv without its compiled module.

mmcv's operators are Python files that call one compiled module, ``mmcv._ext``. The wheel of ``mmcv-lite`` has every one
of those files and lacks that module, and no wheel with it exists for torch 2.2 and later. The modules of this folder
offer the same functions under the same names, one file a kind of operator; `finder` puts them in the place of
``mmcv._ext`` where there is no compiled one, from when `mmext_backbones` is imported.

``python -m mmext_backbones.mmcv_ops`` lists them, and installs them for programs that do not import this package.
"""

from .finder import register_finder

__all__ = ['register_finder']
