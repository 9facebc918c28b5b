"""The backbones."""

from .base import DenseBackbone
from .deit import DeiT
from .elsa_swin import ELSASwin
from .elsa_volo import ELSAVOLO
from .local_swin import LocalSwin
from .maxvit import MaxViT
from .sequencer import Sequencer2D
from .sequencer_variants import SequencerVariant, VanillaSequencer
from .swin import SwinTransformer
from .volo import VOLO

__all__ = [
    'ELSAVOLO',
    'VOLO',
    'DeiT',
    'DenseBackbone',
    'ELSASwin',
    'LocalSwin',
    'MaxViT',
    'Sequencer2D',
    'SequencerVariant',
    'SwinTransformer',
    'VanillaSequencer',
]
