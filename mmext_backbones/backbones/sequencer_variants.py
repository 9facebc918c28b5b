"""The networks that the Sequencer paper compares with Sequencer2D.

Tatsunami and Taki, "Sequencer: Deep LSTM for Image Classification" (arXiv 2205.01972), and the authors' code, which
has no weights of these. `SequencerVariant` changes the token mixer of Sequencer2D and nothing else; its hidden widths
are those of its `arch`. `VanillaSequencer` puts one LSTM over all tokens in its place, row after row:

    arch                  stage   patch   channels   tokens at 224 x 224
    small                 0       14      384        16 x 16
                          1, 2, 3 1       384        16 x 16
    small_hierarchical    0       7       192        32 x 32
                          1       2       384        16 x 16
                          2, 3    1       384        16 x 16

The image is zero-padded at the right and bottom to whole tokens, and the maps are cropped, as in Sequencer2D. The
source adds positions at one size alone; here they are resampled bicubically at others.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul

from torch import Tensor, nn

from mmext_backbones.layers import (
    Mlp,
    Recurrent2D,
    RecurrentSequence,
    Stage,
    TransformerBlock,
    drop_path_schedule,
    patch_embed,
)
from mmext_backbones.ops.padding import zero_pad
from mmext_backbones.registry import MODELS

from .arguments import check_flag, resolve_arch
from .base import DenseBackbone
from .sequencer import Downsample, Sequencer2D, _init_as_published

IMAGE_SIZE = 224  # pixels, that positions are made for


@MODELS.register_module()
class SequencerVariant(Sequencer2D):
    """Sequencer2D with another recurrence: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: as of `Sequencer2D`; `hidden_dims` are the widths of the states.
        cell: 'lstm', 'gru' or 'rnn' (with tanh).
        bidirectional: False for downwards and rightwards alone.
        union: what becomes of the two axes: 'cat', 'add', or one alone, 'vertical' or 'horizontal'.
        projection: the linear layer behind them; without it the states must be as wide as the map: for one axis
            `hidden_dims` of half the channels.

    The other arguments are those of `Sequencer2D`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    def __init__(
        self,
        arch: str | Mapping = 'small',
        *,
        cell: str = 'lstm',
        bidirectional: bool = True,
        union: str = 'cat',
        projection: bool = True,
        in_channels: int = 3,
        patch_size: int = 8,
        pyramid: bool = True,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        recompute: bool | str = 'auto',
        autocast_dtype: str | None = None,
        out_dtype: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        check_flag('bidirectional', bidirectional)
        check_flag('projection', projection)
        # before the constructor, which builds the mixers
        self.mixer = {'cell': cell, 'bidirectional': bidirectional, 'union': union, 'projection': projection}
        super().__init__(
            arch,
            in_channels=in_channels,
            patch_size=patch_size,
            pyramid=pyramid,
            drop_path_rate=drop_path_rate,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            recompute=recompute,
            autocast_dtype=autocast_dtype,
            out_dtype=out_dtype,
            init_cfg=init_cfg,
        )

    def build_mixer(self, embed_dims: int, hidden_dims: int) -> nn.Module:
        return Recurrent2D(embed_dims, hidden_dims, **self.mixer)


@MODELS.register_module()
class VanillaSequencer(DenseBackbone):
    """One bidirectional LSTM over all tokens: [B, in_channels, H, W] -> the map of every stage, any H and W.

    It walks as many steps as there are tokens, one after another: 5,568 in each block at 800 x 1333 pixels.

    Args:
        arch: small or small_hierarchical, or a dict with the keys of `ARCHS`; `patch_sizes` are the patch of the stem
            and those of the convolutions between the stages.
        absolute_position: add learnt positions behind the stem.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks.

    The arguments that it shares with every backbone are those of `DenseBackbone`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    BLOCK_CLASSES = (TransformerBlock,)
    ARCHS: Mapping[str, Mapping] = {
        'small': {'embed_dims': (384,) * 4, 'depths': (4, 3, 8, 3), 'patch_sizes': (14, 1, 1, 1)},
        'small_hierarchical': {
            'embed_dims': (192, 384, 384, 384),
            'depths': (4, 3, 8, 3),
            'patch_sizes': (7, 2, 1, 1),
        },
    }

    def __init__(
        self,
        arch: str | Mapping = 'small',
        *,
        absolute_position: bool = False,
        in_channels: int = 3,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        recompute: bool | str = 'auto',
        autocast_dtype: str | None = None,
        out_dtype: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.ARCHS)
        check_flag('absolute_position', absolute_position)
        channels, depths, patches = arch['embed_dims'], arch['depths'], arch['patch_sizes']
        odd = [c for c in channels if c % 2]
        if odd:
            raise ValueError(f'embed_dims={channels}: expected even numbers, of which each direction has a half')
        strides = list(accumulate(patches, mul))
        super().__init__(
            channels,
            strides,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            recompute=recompute,
            autocast_dtype=autocast_dtype,
            out_dtype=out_dtype,
            init_cfg=init_cfg,
        )
        positions = (-(-IMAGE_SIZE // patches[0]),) * 2 if absolute_position else None
        self.patch_embed = patch_embed(in_channels, channels[0], patches[0], norm=False, positions=positions)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_schedule(drop_path_rate, depths)[: self.num_stages]):
            blocks = [
                TransformerBlock(
                    RecurrentSequence(channels[i]),
                    channels[i],
                    mlp=Mlp(channels[i], ratio=3),
                    norm_eps=1e-6,
                    drop_path_rate=rate,
                )
                for rate in rates
            ]
            more = i + 1 < self.num_stages
            self.stages.append(Stage(blocks, Downsample(*channels[i : i + 2], patches[i + 1]) if more else None))
        _init_as_published(self)
        self.freeze()

    def stem_modules(self) -> list[nn.Module]:
        return [self.patch_embed]

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        H, W = x.shape[-2:]
        whole = self._level_strides[-1]
        x = self.patch_embed(zero_pad(x, (0, -W % whole, 0, -H % whole)))  # [B, H/p, W/p, C]
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = self.run_block(i, block, x)
            if i in self.out_indices:
                s = self._level_strides[i]
                outs.append(self.output(i, x, (-(-H // s), -(-W // s))))
            if stage.downsample is not None:
                x = stage.downsample(x)
        return tuple(outs)
