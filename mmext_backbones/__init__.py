"""Swin, MaxViT, ELSA-Swin and Sequencer2D as dense-prediction backbones for mmdet, mmsegmentation and mmpretrain.

Importing the package registers everything it offers and needs torch and mmengine only.
"""

import sys

from .version import __version__

# `python -m mmext_backbones.doctor` tells what is missing: this package must not need it first
if not (sys.argv[:1] == ['-m'] and 'mmext_backbones.doctor' in sys.orig_argv):
    from . import backbones, engine
    from .config.bases import register_bases
    from .mmcv_ops import register_finder
    from .weights.loading import register_schemes
    from .weights.safe_globals import allow_mmengine_checkpoints

    # torch's safe mode reads what mmengine writes: --resume and test need no unsafe switch
    allow_mmengine_checkpoints()
    register_schemes()
    register_bases()
    register_finder()

__all__ = ['__version__', 'backbones', 'engine']
