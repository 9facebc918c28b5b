"""Swin, MaxViT, ELSA-Swin and Sequencer2D as dense-prediction backbones for mmdet, mmsegmentation and mmpretrain.

Importing the package registers everything it offers and needs torch and mmengine only.
"""

__version__ = '0.1.0'

from . import backbones, engine
from .bases import register_bases
from .weights.loading import register_schemes
from .weights.safe_globals import allow_mmengine_checkpoints

allow_mmengine_checkpoints()  # torch's safe mode reads what mmengine writes: --resume and test need no unsafe switch
register_schemes()
register_bases()

__all__ = ['__version__', 'backbones', 'engine']
