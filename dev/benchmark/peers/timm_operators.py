"""The layers of MaxViT and Sequencer2D, against timm's: maps [B, H, W, C] in and out, with their projections."""

from importlib import import_module

import torch
from torch import Tensor, nn

from mmext_backbones.layers import BiLSTM2D, PartitionAttention

from ..case import WINDOW, Peer, Setting
from ..roofline import Work, attention_work, bilstm_work
from .operators import channels_of, kind_of, map_size, random, renamed, stage_of

# ---------------------------------------------------------------------------------------------------------------------
# Window and grid attention of MaxViT

HEAD_DIM = 32


class Partition(nn.Module):
    """Ours with its window, which the network hands it with every call."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, (WINDOW, WINDOW))


class TimmPartition(nn.Module):
    """timm's layer without its norms and its perceptron."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attn = layer.attn
        self.call = layer._partition_attn  # bound to the layer, whose other modules stay out of the state dict

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def our_partition(setting: Setting, peer: Peer) -> nn.Module:
    C = channels_of(setting)
    return Partition(PartitionAttention(C, C // HEAD_DIM, WINDOW, grid=kind_of(setting) == 'grid'))


def timm_partition(setting: Setting) -> nn.Module:
    maxxvit = import_module('timm.models.maxxvit')
    cfg = maxxvit.MaxxVitTransformerCfg(
        dim_head=HEAD_DIM, head_first=False, rel_pos_type='bias_tf', window_size=(WINDOW,) * 2, grid_size=(WINDOW,) * 2
    )
    kind = 'grid' if kind_of(setting) == 'grid' else 'block'
    return TimmPartition(maxxvit.PartitionAttentionCl(channels_of(setting), kind, cfg))


def needs_whole_windows(setting: Setting) -> str | None:
    H, W = map_size(setting)
    return f'it takes maps of multiples of {WINDOW} only' if H % WINDOW or W % WINDOW else None


def partition_floor(setting: Setting, dtype: torch.dtype) -> Work:
    C = channels_of(setting)
    return attention_work(setting.batch, *map_size(setting), C, C // HEAD_DIM, WINDOW, dtype.itemsize)


PARTITION_PEERS = (
    Peer(
        'timm',
        lambda: import_module('timm'),
        timm_partition,
        renamed(('attn.rel_pos.', 'attn.'), ('attn.', 'layer.')),
        refuses=needs_whole_windows,
    ),
)

# ---------------------------------------------------------------------------------------------------------------------
# BiLSTM2D of Sequencer2D: stages of strides 7, 14, 14, 14


def sequencer_map(setting: Setting) -> tuple[int, int]:
    stride = 14 if stage_of(setting) else 7
    return tuple(-(-edge // stride) for edge in setting.size)


def bilstm_inputs(setting: Setting) -> tuple[Tensor]:
    return (random(setting.batch, *sequencer_map(setting), channels_of(setting)),)


def our_bilstm(setting: Setting, peer: Peer) -> nn.Module:
    return BiLSTM2D(channels_of(setting), setting.arch['hidden_dims'][stage_of(setting)])


def timm_bilstm(setting: Setting) -> nn.Module:
    cls = import_module('timm.models.sequencer').LSTM2d
    return cls(channels_of(setting), setting.arch['hidden_dims'][stage_of(setting)])


def bilstm_floor(setting: Setting, dtype: torch.dtype) -> Work:
    hidden = setting.arch['hidden_dims'][stage_of(setting)]
    return bilstm_work(setting.batch, *sequencer_map(setting), channels_of(setting), hidden, dtype.itemsize)


BILSTM_PEERS = (Peer('timm', lambda: import_module('timm'), timm_bilstm, renamed(('fc.', 'proj.'))),)
