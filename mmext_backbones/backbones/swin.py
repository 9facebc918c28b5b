"""Swin Transformer as a dense backbone.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (arXiv 2103.14030): attention
inside non-overlapping windows costs time linear in the image; every other block shifts the windows by half their edge,
so that neighbours meet.

    stage   stride   channels (tiny)   tokens at 224 x 224
    0       4        96                56 x 56
    1       8        192               28 x 28
    2       16       384               14 x 14
    3       32       768               7 x 7

A stage's output is its last block's, before the patch merging that leads to the next stage. As in the authors'
detection code, and unlike their classifier, a map that is one window still shifts, and each output has a norm of its
own. Nothing else differs from the source.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmext_backbones.layers import (
    Mlp,
    PatchEmbed,
    PatchMerging,
    Stage,
    TransformerBlock,
    WindowAttention,
    drop_path_schedule,
)
from mmext_backbones.registry import MODELS

from .arguments import check_flag, check_int, check_rate, resolve_arch
from .base import DenseBackbone


@MODELS.register_module()
class SwinTransformer(DenseBackbone):
    """Swin Transformer: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: tiny, small, base or large, or a dict with the keys of `ARCHS`.
        window_size: edge of an attention window in tokens; 7 or, for the published 384 x 384 weights, 12.
        drop_rate: dropout of attention outputs and inside the MLPs.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks.
        shift_single_window: shift also a map that is no larger than a window, as the authors' dense backbone does and
            their classifier does not.

    The arguments that it shares with every backbone are those of `DenseBackbone`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    BLOCK_CLASSES = (TransformerBlock,)
    ARCHS: Mapping[str, Mapping] = {
        'tiny': {'embed_dims': 96, 'depths': (2, 2, 6, 2), 'num_heads': (3, 6, 12, 24)},
        'small': {'embed_dims': 96, 'depths': (2, 2, 18, 2), 'num_heads': (3, 6, 12, 24)},
        'base': {'embed_dims': 128, 'depths': (2, 2, 18, 2), 'num_heads': (4, 8, 16, 32)},
        'large': {'embed_dims': 192, 'depths': (2, 2, 18, 2), 'num_heads': (6, 12, 24, 48)},
    }

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        *,
        in_channels: int = 3,
        window_size: int = 7,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        shift_single_window: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        recompute: bool | str = 'auto',
        autocast_dtype: str | None = None,
        out_dtype: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.ARCHS)
        check_int('window_size', window_size)
        check_rate('drop_rate', drop_rate)
        check_rate('attn_drop_rate', attn_drop_rate)
        check_flag('shift_single_window', shift_single_window)
        depths, num_heads = arch['depths'], arch['num_heads']
        channels = [arch['embed_dims'] * 2**i for i in range(len(depths))]
        super().__init__(
            channels,
            [4 * 2**i for i in range(len(depths))],
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            recompute=recompute,
            autocast_dtype=autocast_dtype,
            out_dtype=out_dtype,
            init_cfg=init_cfg,
        )
        for c, heads in zip(channels, num_heads, strict=True):
            if c % heads:
                raise ValueError(f'num_heads={num_heads}: expected divisors of the channels {channels}')

        self.arch = arch
        self.window_size = window_size
        self.shift_single_window = shift_single_window
        self.patch_embed = PatchEmbed(in_channels, channels[0])
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_schedule(drop_path_rate, depths)[: self.num_stages]):
            blocks = [
                TransformerBlock(
                    self.build_attention(i, j, attn_drop_rate, drop_rate),
                    channels[i],
                    mlp=Mlp(channels[i], drop_rate=drop_rate),
                    drop_path_rate=rate,
                )
                for j, rate in enumerate(rates)
            ]
            self.stages.append(Stage(blocks, PatchMerging(channels[i]) if i + 1 < self.num_stages else None))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(channels[i]))
        self.freeze()

    def build_attention(self, stage: int, block: int, attn_drop_rate: float, drop_rate: float) -> nn.Module:
        """The attention module of a block; every odd block shifts its windows."""
        return WindowAttention(
            self._level_channels[stage],
            self.arch['num_heads'][stage],
            self.window_size,
            shift_size=self.window_size // 2 if block % 2 else 0,
            attn_drop_rate=attn_drop_rate,
            drop_rate=drop_rate,
            shift_single_window=self.shift_single_window,
        )

    def stem_modules(self) -> list[nn.Module]:
        return [self.patch_embed]

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)  # [B, H/4, W/4, C]
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = self.run_block(i, block, x)
            if any(i == index for index in self.out_indices):  # torch 2.4 compiles a plain `in` to False
                outs.append(self.output(i, x))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outs)
