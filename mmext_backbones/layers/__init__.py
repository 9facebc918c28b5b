"""Modules that two backbones share, or that are hard enough to test alone."""

from .bilstm import BiLSTM2D
from .block import Stage, TransformerBlock
from .conv import PatchConv2d, SameConv2d, same_conv
from .drop_path import DropPath, drop_path_schedule
from .elsa_attention import ELSAAttention
from .mbconv import MBConv, PooledShortcut, batch_norm
from .mlp import Mlp
from .partition_attention import PartitionAttention
from .patch import PatchEmbed, PatchMerging
from .window_attention import WindowAttention

__all__ = [
    'BiLSTM2D',
    'DropPath',
    'ELSAAttention',
    'MBConv',
    'Mlp',
    'PartitionAttention',
    'PatchConv2d',
    'PatchEmbed',
    'PatchMerging',
    'PooledShortcut',
    'SameConv2d',
    'Stage',
    'TransformerBlock',
    'WindowAttention',
    'batch_norm',
    'drop_path_schedule',
    'same_conv',
]
