"""Modules that two backbones share, or that are hard enough to test alone."""

from .block import Stage, TransformerBlock
from .drop_path import DropPath, drop_path_schedule
from .elsa_attention import ELSAAttention
from .mlp import Mlp
from .patch import PatchEmbed, PatchMerging
from .window_attention import WindowAttention

__all__ = [
    'DropPath',
    'ELSAAttention',
    'Mlp',
    'PatchEmbed',
    'PatchMerging',
    'Stage',
    'TransformerBlock',
    'WindowAttention',
    'drop_path_schedule',
]
