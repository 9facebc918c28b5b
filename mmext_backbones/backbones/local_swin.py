"""The study of local filters: any local mixer in Swin's frame.

Zhou et al., "ELSA: Enhanced Local Self-Attention for Vision Transformer" (arXiv 2112.12786), section 3.1: patches,
stages, MLPs and merging of Swin-T, with one module exchanged, the one that mixes tokens. So local self-attention,
static filters and filters computed from the image meet with everything else equal.

    stage   stride   channels (tiny)   tokens at 224 x 224
    0       4        96                56 x 56
    1       8        192               28 x 28
    2       16       384               14 x 14
    3       32       768               7 x 7

`local_mixers.MIXERS` is the table of the names. As in the paper, what reads a neighbourhood (`-n`, ELSA) does so in all
stages but the last, which has windows; the other relatives stand in every stage. `shift`, `absolute_position` and the
terms are also the ablations of Liu et al., "Swin Transformer" (arXiv 2103.14030), table 4.

The paper does not say which edge its neighbourhoods have, nor how it initialises: here 7, as Swin's windows and as in
ELSA-Swin, and tables begin as Swin's, truncated normal of std 0.02. Its depthwise convolution it does not spell out:
`dwconv` is equation 4 with r^b alone, no norm and a filter a channel, between the projections of values and outputs.
`dwnet` is the one of Han et al. (arXiv 2106.04263), with their block: no norm before it, a batch norm before the MLP.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmext_backbones.layers import (
    DepthwiseMixer,
    PatchMerging,
    Stage,
    TokenBatchNorm,
    TransformerBlock,
    drop_path_schedule,
    patch_embed,
)
from mmext_backbones.registry import MODELS

from .arguments import check_flag, check_int, resolve_arch
from .base import DenseBackbone
from .local_mixers import Slot, find_mixer, heads_of_stages
from .swin import SwinTransformer

POSITIONS = (56, 56)  # tokens of stage 0 at 224 x 224


@MODELS.register_module()
class LocalSwin(DenseBackbone):
    """Swin with another mixer of tokens: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: tiny, or a dict with the keys of `ARCHS`.
        mixer: a key of `local_mixers.MIXERS`.
        heads: '1', '1x' (those of `arch`), '2x', or 'C', one a channel; None for the mixer's own.
        normalization: 'softmax', 'filter' or 'identity', for the nets of equation 4; None for the mixer's own.
        kernel_size: odd edge of a neighbourhood in tokens.
        window_size: edge of a window in tokens.
        shift: shift the windows of every other block.
        absolute_position: add learnt positions behind the patch embedding.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks.
        shift_single_window: as of `SwinTransformer`.

    The arguments that it shares with every backbone are those of `DenseBackbone`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    BLOCK_CLASSES = (TransformerBlock,)
    ARCHS: Mapping[str, Mapping] = {'tiny': SwinTransformer.ARCHS['tiny']}

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        *,
        mixer: str = 'net7',
        heads: str | None = None,
        normalization: str | None = None,
        kernel_size: int = 7,
        window_size: int = 7,
        shift: bool = True,
        absolute_position: bool = False,
        in_channels: int = 3,
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
        row = find_mixer(mixer, heads, normalization)
        check_int('window_size', window_size)
        check_int('kernel_size', kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f'kernel_size={kernel_size}: expected an odd number')
        for name, flag in (('shift', shift), ('absolute_position', absolute_position)):
            check_flag(name, flag)
        check_flag('shift_single_window', shift_single_window)
        depths = arch['depths']
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
        num_heads = heads_of_stages(row.heads, channels, arch['num_heads'])
        self.mixer = mixer
        self.patch_embed = patch_embed(
            in_channels, channels[0], 4, norm=True, positions=POSITIONS if absolute_position else None
        )
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_schedule(drop_path_rate, depths)[: self.num_stages]):
            build = row.build if i + 1 < len(depths) else row.last
            blocks = []
            for j, rate in enumerate(rates):
                shift_size = window_size // 2 if shift and j % 2 else 0
                sizes = kernel_size, window_size, shift_size, shift_single_window
                attn = build(Slot(channels[i], num_heads[i], row.normalization, *sizes))
                blocks.append(self.build_block(attn, channels[i], rate))
            self.stages.append(Stage(blocks, PatchMerging(channels[i]) if i + 1 < self.num_stages else None))
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(channels[i]))
        self.freeze()

    @staticmethod
    def build_block(attn: nn.Module, embed_dims: int, drop_path_rate: float) -> TransformerBlock:
        """Swin's block around a mixer; that of Han et al. around theirs."""
        block = TransformerBlock(attn, embed_dims, drop_path_rate=drop_path_rate)
        if isinstance(attn, DepthwiseMixer):
            block.norm1, block.norm2 = nn.Identity(), TokenBatchNorm(embed_dims)
        return block

    def stem_modules(self) -> list[nn.Module]:
        return [self.patch_embed]

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)  # [B, H/4, W/4, C]
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = self.run_block(i, block, x)
            if i in self.out_indices:
                outs.append(self.output(i, x))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outs)
