"""Swin, MaxViT, ELSA-Swin, Sequencer2D and VOLO as dense-prediction backbones for mmdet, mmsegmentation and mmpretrain.

Importing the package registers everything it offers and needs torch and mmengine only.
"""

import importlib
import os
import sys

from .version import __version__


def _looks_only() -> bool:
    """Whether this process is the doctor, which tells what is missing, or lists the verbs of the command."""
    program = (sys.argv or [''])[0]
    if program == '-m' and 'mmext_backbones.doctor' in sys.orig_argv:
        return True
    ours = 'mmext_backbones' in sys.orig_argv if program == '-m' else os.path.basename(program).startswith('mmext')
    return ours and sys.argv[1:2] in ([], ['-h'], ['--help'], ['--version'], ['doctor'])


if not _looks_only():  # such a process must not need first what may be missing
    from . import backbones, engine  # noqa: F401 (engine registers what plugs into mmengine)
    from .backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
    from .config.bases import register_bases
    from .mmcv_ops import register_finder
    from .weights.loading import register_schemes
    from .weights.safe_globals import allow_mmengine_checkpoints

    # torch's safe mode reads what mmengine writes: --resume and test need no unsafe switch
    allow_mmengine_checkpoints()
    register_schemes()
    register_bases()
    register_finder()

# the rest loads at its first use: it needs more than torch and mmengine, or time
_LAZY = {'swap_backbone': 'swap', 'Predictor': 'inference', 'build_network': 'zoo'}

__all__ = [
    'ELSAVOLO',
    'VOLO',
    'ELSASwin',
    'MaxViT',
    'Predictor',
    'Sequencer2D',
    'SwinTransformer',
    '__version__',
    'build_network',
    'swap_backbone',
]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(f'.{_LAZY[name]}', __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
