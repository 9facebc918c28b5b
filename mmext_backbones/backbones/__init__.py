"""The backbones."""

from .base import DenseBackbone
from .elsa_swin import ELSASwin
from .swin import SwinTransformer

__all__ = ['DenseBackbone', 'ELSASwin', 'SwinTransformer']
