"""ELSA-Swin as a dense backbone.

Zhou et al., "ELSA: Enhanced Local Self-Attention for Vision Transformer" (arXiv 2112.12786): Swin, whose window
attention in the first three stages gives way to a filter of 7 x 7 taps for every pixel and head. The filters come from
the elementwise product of query and key (Hadamard attention) and are joined by static filters, one a channel (the
ghost head). The last stage keeps Swin's window attention.

    stage   stride   channels (tiny)   tokens at 224 x 224   attention
    0       4        96                56 x 56               ELSA 7 x 7
    1       8        192               28 x 28               ELSA 7 x 7
    2       16       384               14 x 14               ELSA 7 x 7
    3       32       768               7 x 7                 (shifted) windows 7 x 7

The modules are the authors', under the field's names: `weights.elsa_swin` renames their checkpoints. Their window
attention packs v, q, k and transposes and mirrors the bias table; ours is Swin's.
"""

from collections.abc import Mapping

from torch import nn

from mmext_backbones.layers import ELSAAttention
from mmext_backbones.registry import MODELS

from .swin import SwinTransformer


@MODELS.register_module()
class ELSASwin(SwinTransformer):
    """ELSA-Swin: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: tiny, small or base, or a dict with the keys of `ARCHS`; `group_width` is the number of channels in a
            group of the filter convolution.
        window_size: edge of an attention window of the last stage, in tokens.
        drop_rate: dropout of attention outputs and inside the MLPs.
        attn_drop_rate: dropout of attention weights, in the last stage only.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks.
        shift_single_window: shift also a map that is no larger than a window, as the authors' dense backbone does and
            their classifier does not.

    The arguments that it shares with every backbone are those of `DenseBackbone`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    ARCHS: Mapping[str, Mapping] = {
        'tiny': {'embed_dims': 96, 'depths': (2, 2, 6, 2), 'num_heads': (3, 6, 12, 24), 'group_width': 4},
        'small': {'embed_dims': 96, 'depths': (2, 2, 18, 2), 'num_heads': (3, 6, 12, 24), 'group_width': 8},
        'base': {'embed_dims': 128, 'depths': (2, 2, 18, 2), 'num_heads': (4, 8, 16, 32), 'group_width': 8},
    }

    def build_attention(self, stage: int, block: int, attn_drop_rate: float, drop_rate: float) -> nn.Module:
        """The attention module of a block: windows in the last stage, ELSA before it."""
        if stage == len(self.arch['depths']) - 1:
            return super().build_attention(stage, block, attn_drop_rate, drop_rate)
        return ELSAAttention(
            self._level_channels[stage],
            self.arch['num_heads'][stage],
            group_width=self.arch['group_width'],
            drop_rate=drop_rate,
        )
