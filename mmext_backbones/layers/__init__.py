"""Modules that two backbones share, or that are hard enough to test alone."""

from .batch_norm import TokenBatchNorm
from .bilstm import BiLSTM2D
from .block import Stage, TransformerBlock
from .class_attention import ClassBlock
from .conv import PatchConv2d, SameConv2d, same_conv
from .drop_path import DropPath, drop_path_schedule
from .dynamic_filters import DecoupledDynamicFilter, DepthwiseMixer, DynamicDepthwiseConv, Involution
from .elsa_attention import ELSAAttention
from .ghost_attention import GhostAttention
from .global_attention import GlobalAttention
from .local_attention import LocalAttention
from .mbconv import MBConv, PooledShortcut, batch_norm
from .mlp import Mlp
from .outlook_attention import OutlookAttention
from .partition_attention import PartitionAttention
from .patch import PatchEmbed, PatchMerging
from .position_embedding import PositionedPatchEmbed, PositionEmbedding, patch_embed
from .recurrent import Recurrent2D, RecurrentSequence
from .window_attention import WindowAttention

__all__ = [
    'BiLSTM2D',
    'ClassBlock',
    'DecoupledDynamicFilter',
    'DepthwiseMixer',
    'DropPath',
    'DynamicDepthwiseConv',
    'ELSAAttention',
    'GhostAttention',
    'GlobalAttention',
    'Involution',
    'LocalAttention',
    'MBConv',
    'Mlp',
    'OutlookAttention',
    'PartitionAttention',
    'PatchConv2d',
    'PatchEmbed',
    'PatchMerging',
    'PooledShortcut',
    'PositionEmbedding',
    'PositionedPatchEmbed',
    'Recurrent2D',
    'RecurrentSequence',
    'SameConv2d',
    'Stage',
    'TokenBatchNorm',
    'TransformerBlock',
    'WindowAttention',
    'batch_norm',
    'drop_path_schedule',
    'patch_embed',
    'same_conv',
]
