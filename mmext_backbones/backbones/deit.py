"""DeiT with ELSA's ghost head, as a dense backbone of one scale.

Touvron et al., "Training data-efficient image transformers" (arXiv 2012.12877): patches of 16 pixels, absolute
positions, blocks of global attention. Zhou et al., "ELSA" (arXiv 2112.12786, appendix C), drop its class token, and put
their ghost head on the maps of attention, which doubles the heads (`layers.GhostAttention`).

    stage   stride   channels (tiny)   tokens at 224 x 224
    0       16       192               14 x 14

Without the ghost head it is the plain vision transformer without a class token. At other sizes positions are resampled
bicubically.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmext_backbones.layers import (
    GhostAttention,
    GlobalAttention,
    Stage,
    TransformerBlock,
    drop_path_schedule,
    patch_embed,
)
from mmext_backbones.registry import MODELS

from .arguments import check_flag, resolve_arch
from .base import DenseBackbone

PATCH = 16
POSITIONS = (14, 14)  # of the published network, at 224 x 224


@MODELS.register_module()
class DeiT(DenseBackbone):
    """DeiT without its class token: [B, in_channels, H, W] -> one map of stride 16, any H and W.

    Args:
        arch: tiny, or a dict with the keys of `ARCHS`.
        ghost: the ghost head of ELSA, with twice as many heads.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks.

    The arguments that it shares with every backbone are those of `DenseBackbone`; `out_indices` can be (0,) alone.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    BLOCK_CLASSES = (TransformerBlock,)
    ARCHS: Mapping[str, Mapping] = {'tiny': {'embed_dims': 192, 'depths': (12,), 'num_heads': (3,)}}

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        *,
        ghost: bool = True,
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0,),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        recompute: bool | str = 'auto',
        autocast_dtype: str | None = None,
        out_dtype: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.ARCHS)
        check_flag('ghost', ghost)
        C, depths, num_heads = arch['embed_dims'], arch['depths'], arch['num_heads']
        if len(depths) != 1:
            raise ValueError(f'depths={depths}: expected one number, of one stage')
        if C % (2 * num_heads[0]):
            raise ValueError(f'num_heads={num_heads}: expected twice as many to divide embed_dims={C}')
        super().__init__(
            (C,),
            (PATCH,),
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            recompute=recompute,
            autocast_dtype=autocast_dtype,
            out_dtype=out_dtype,
            init_cfg=init_cfg,
        )
        self.patch_embed = patch_embed(in_channels, C, PATCH, norm=False, positions=POSITIONS)
        blocks = []
        for rate in drop_path_schedule(drop_path_rate, depths)[0]:
            if ghost:
                attn = GhostAttention(C, num_heads[0], size=POSITIONS)
            else:
                attn = GlobalAttention(C, num_heads[0], qkv_bias=True)
            blocks.append(TransformerBlock(attn, C, norm_eps=1e-6, drop_path_rate=rate))
        self.stages = nn.ModuleList([Stage(blocks)])
        self.norm0 = nn.LayerNorm(C, eps=1e-6)
        self.freeze()

    def stem_modules(self) -> list[nn.Module]:
        return [self.patch_embed]

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)  # [B, H/16, W/16, C]
        for block in self.stages[0].blocks:
            x = self.run_block(0, block, x)
        return (self.output(0, x),)
