"""What Swin's paper puts between the backbone and the pyramid of its largest detectors."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from mmengine.registry import MODELS as ROOT_MODELS
from torch import Tensor

from .layers import GlobalAttention, TransformerBlock
from .registry import MODELS


@MODELS.register_module()
class GlobalBlockNeck(BaseModule):
    """A transformer block of global attention on the last map, then another neck on all of them.

    The paper says that HTC++ has a global self-attention layer at the end of the last stage, and no more. A whole
    block, with a perceptron of four times the width, makes up the published numbers of parameters to 0.5 M. That it
    works on the normed map, has heads as wide as the backbone's and knows no positions is assumed.

    Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), appendix A2.2.

    Args:
        in_channels: channels of each map.
        neck: config of the neck, without its `in_channels`.
        head_dim: channels per head.
        init_cfg: of mmengine's `BaseModule`.

    Raises:
        ValueError: if the channels of the last map are no multiple of `head_dim`.
    """

    def __init__(
        self, in_channels: Sequence[int], neck: dict, head_dim: int = 32, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg)
        last = in_channels[-1]
        if last % head_dim:
            raise ValueError(f'in_channels={list(in_channels)}: expected a last number that {head_dim=} divides')
        self.block = TransformerBlock(GlobalAttention(last, last // head_dim, qkv_bias=True), last)
        self.neck = ROOT_MODELS.build({**neck, 'in_channels': list(in_channels)})

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps [B, C_i, H_i, W_i] -> what the neck makes of them."""
        *others, last = maps
        last = self.block(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
        return self.neck((*others, last))
