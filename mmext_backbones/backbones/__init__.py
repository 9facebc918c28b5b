"""The backbones."""

from .base import DenseBackbone
from .elsa_swin import ELSASwin
from .maxvit import MaxViT
from .sequencer import Sequencer2D
from .swin import SwinTransformer

__all__ = ['DenseBackbone', 'ELSASwin', 'MaxViT', 'Sequencer2D', 'SwinTransformer']
