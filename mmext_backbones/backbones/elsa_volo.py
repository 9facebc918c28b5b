"""ELSA-VOLO as a dense backbone: a reading of a network that nobody published.

Zhou et al., "ELSA: Enhanced Local Self-Attention for Vision Transformer" (arXiv 2112.12786) replace the outlook
attention of VOLO by enhanced local self-attention and report 84.7 (d1), 85.7 (d3) and 87.2 (d5) on ImageNet. Their code
holds no such network, and there are no weights.

    stage   stride   channels (d1)   tokens at 224 x 224   attention
    0       8        192             28 x 28               ELSA 5 x 5
    1-3     16       384             14 x 14               global

From the paper: all outlookers give way to ELSA blocks, a few hyper-parameters of the block are adjusted, everything
else is VOLO's. Inferred, since the paper names none of them: the block has the defaults of the authors' code, which no
ELSA-Swin uses and which fit VOLO: a neighbourhood of 5 x 5, as far as outlook attention reaches; both halves of the
ghost head (lam = 1, gamma = 1); groups of 8 channels; no bias of q, k and v; no scale; perceptrons of VOLO's ratio.
"""

from collections.abc import Mapping

from torch import nn

from mmext_backbones.layers import ELSAAttention
from mmext_backbones.registry import MODELS

from .volo import VOLO


@MODELS.register_module()
class ELSAVOLO(VOLO):
    """ELSA-VOLO: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: d1 to d5, or a dict with the keys of `ARCHS`; `kernel_size` is the edge of the neighbourhood in tokens,
            `group_width` the number of channels in a group of the filter convolution.

    The other arguments are those of `VOLO`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    ARCHS: Mapping[str, Mapping] = {
        name: {**arch, 'kernel_size': 5, 'group_width': 8} for name, arch in VOLO.ARCHS.items()
    }

    def build_attention(self, stage: int, block: int) -> nn.Module:
        """The attention module of a block: ELSA in stage 0, VOLO's after it."""
        if stage > 0:
            return super().build_attention(stage, block)
        if self.arch['kernel_size'] % 2 == 0:
            raise ValueError(f'kernel_size={self.arch["kernel_size"]}: expected an odd number')
        return ELSAAttention(
            self.arch['embed_dims'][0],
            self.arch['num_heads'][0],
            self.arch['kernel_size'],
            group_width=self.arch['group_width'],
            lam=1.0,
            qkv_bias=False,
        )
