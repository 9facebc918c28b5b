"""The backbones."""

from .base import DenseBackbone
from .elsa_swin import ELSASwin
from .elsa_volo import ELSAVOLO
from .maxvit import MaxViT
from .sequencer import Sequencer2D
from .swin import SwinTransformer
from .volo import VOLO

__all__ = ['ELSAVOLO', 'VOLO', 'DenseBackbone', 'ELSASwin', 'MaxViT', 'Sequencer2D', 'SwinTransformer']
