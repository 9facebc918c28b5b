"""Modules that two backbones share, or that are hard enough to test alone."""

from .bilstm import BiLSTM2D
from .block import Stage, TransformerBlock
from .class_attention import ClassBlock
from .conv import PatchConv2d, SameConv2d, same_conv
from .drop_path import DropPath, drop_path_schedule
from .elsa_attention import ELSAAttention
from .global_attention import GlobalAttention
from .mbconv import MBConv, PooledShortcut, batch_norm
from .mlp import Mlp
from .outlook_attention import OutlookAttention
from .partition_attention import PartitionAttention
from .patch import PatchEmbed, PatchMerging
from .position_embedding import PositionEmbedding
from .window_attention import WindowAttention

__all__ = [
    'BiLSTM2D',
    'ClassBlock',
    'DropPath',
    'ELSAAttention',
    'GlobalAttention',
    'MBConv',
    'Mlp',
    'OutlookAttention',
    'PartitionAttention',
    'PatchConv2d',
    'PatchEmbed',
    'PatchMerging',
    'PooledShortcut',
    'PositionEmbedding',
    'SameConv2d',
    'Stage',
    'TransformerBlock',
    'WindowAttention',
    'batch_norm',
    'drop_path_schedule',
    'same_conv',
]
