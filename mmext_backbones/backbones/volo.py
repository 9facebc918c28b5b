"""VOLO as a dense backbone.

Yuan et al., "VOLO: Vision Outlooker for Visual Recognition" (arXiv 2106.13112): a transformer on tokens of 16 pixels,
before which blocks of outlook attention work on tokens of 8: each pixel of a coarser map gives the weights with which
the 3 x 3 tokens around it gather from each other.

    stage   stride   channels (d1)   tokens at 224 x 224   attention
    0       8        192             28 x 28               outlook, 3 x 3
    1       16       384             14 x 14               global
    2       16       384             14 x 14               global
    3       16       384             14 x 14               global

A learnt position embedding joins before stage 1. Nobody published a dense form; ours, the default, derives four levels
of strides 4 to 32 from the first and the last stage (`two_scales`), each with a norm of its own; that of level 2 is the
classifier's. `pyramid=False` returns the raw stage maps.

Differences from the source:

- Any size: the image is padded to whole tokens of 16 pixels, and the position embedding resampled to the map, as its
  authors resample it once before they fine-tune at another size. At 224 x 224 the numbers are the source's.
- `window_size` keeps the attention inside windows, but for the last block of each stage, where global attention on all
  tokens of a large image costs more than everything else.
- The class token, its two blocks and the heads are the classifier's (`heads.VOLOClsHead`); what mixes the tokens of two
  images in the authors' training, and the labels of single tokens, are not here.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmext_backbones.layers import (
    GlobalAttention,
    Mlp,
    OutlookAttention,
    PatchConv2d,
    PositionEmbedding,
    Stage,
    TransformerBlock,
    drop_path_schedule,
    fused,
)
from mmext_backbones.ops.derivatives import is_transformed
from mmext_backbones.ops.torch_versions import is_compiling
from mmext_backbones.registry import MODELS

from .arguments import check_flag, check_int, resolve_arch
from .base import keep_batch_norms
from .two_scales import Downsample, TwoScaleBackbone

PATCH_SIZE = 8  # pixels of a token of stage 0


class ConvStem(nn.Module):
    """Three convolutions, then patches of their map: [B, in_channels, H, W] -> [B, H/8, W/8, embed_dims].

    Args:
        in_channels: channels of the image.
        stem_dims: channels of the convolutions, the first of which strides.
        embed_dims: channels of a token.
    """

    def __init__(self, in_channels: int, stem_dims: int, embed_dims: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, stem_dims, 7, stride=2, padding=3, bias=False)
        self.norm1 = nn.BatchNorm2d(stem_dims)
        self.conv2 = nn.Conv2d(stem_dims, stem_dims, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(stem_dims)
        self.conv3 = nn.Conv2d(stem_dims, stem_dims, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(stem_dims)
        self.act = nn.ReLU()
        self.proj = PatchConv2d(stem_dims, embed_dims, PATCH_SIZE // 2)

    @fused.by(fused.conv_stem)
    def forward(self, x: Tensor) -> Tensor:
        if not (is_compiling() or is_transformed()):  # vmap knows no memory formats; recorded, they ask for the width
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.act(self.norm1(self.conv1(x)))
        x = self.act(self.norm2(self.conv2(x)))
        x = self.act(self.norm3(self.conv3(x)))
        return self.proj(x).permute(0, 2, 3, 1).contiguous()


@MODELS.register_module()
class VOLO(TwoScaleBackbone):
    """VOLO: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: d1 to d5, or a dict with the keys of `ARCHS`. The stages after the first are as wide as each other.
        pyramid: return four levels of strides 4 to 32. When False, the raw stage maps of strides 8, 16, 16, 16.
        window_size: edge of the windows, in tokens of 16 pixels, that all but the last block of a transformer stage
            attend in; None for global attention in every block, as published.
        pos_embed_size: edge of the learnt grid of positions; 14, or 24, 28, 32 for the published weights of 384, 448,
            512 pixels.
        norm_eval: keep the batch norms of the stem in eval mode, for few images a GPU; their weights still train.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks, but 0 in stage 0, as in the
            authors' code.
        out_indices: levels, or without the pyramid stages, whose maps are returned, ascending.
        frozen_stages: -1 nothing; 0 the stem and the positions; n >= 1 those and the first n stages, with `norm0` to
            `norm{n-1}`.

    The arguments that it shares with every backbone are those of `DenseBackbone`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    BLOCK_CLASSES = (TransformerBlock,)
    ARCHS: Mapping[str, Mapping] = {
        name: {'embed_dims': embed_dims, 'depths': depths, 'num_heads': heads, 'mlp_ratio': ratio, 'stem_dims': stem}
        for name, embed_dims, depths, heads, ratio, stem in (
            ('d1', (192, 384, 384, 384), (4, 4, 8, 2), (6, 12, 12, 12), 3, 64),
            ('d2', (256, 512, 512, 512), (6, 4, 10, 4), (8, 16, 16, 16), 3, 64),
            ('d3', (256, 512, 512, 512), (8, 8, 16, 4), (8, 16, 16, 16), 3, 64),
            ('d4', (384, 768, 768, 768), (8, 8, 16, 4), (12, 16, 16, 16), 3, 64),
            ('d5', (384, 768, 768, 768), (12, 12, 20, 4), (12, 16, 16, 16), 4, 128),
        )
    }

    def __init__(
        self,
        arch: str | Mapping = 'd1',
        *,
        in_channels: int = 3,
        pyramid: bool = True,
        window_size: int | None = None,
        pos_embed_size: int = 14,
        norm_eval: bool = False,
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
        if window_size is not None:
            check_int('window_size', window_size)
        check_int('pos_embed_size', pos_embed_size)
        check_flag('norm_eval', norm_eval)
        channels, depths, num_heads = arch['embed_dims'], arch['depths'], arch['num_heads']
        super().__init__(
            channels,
            patch_size=PATCH_SIZE,
            pyramid=pyramid,
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            recompute=recompute,
            autocast_dtype=autocast_dtype,
            out_dtype=out_dtype,
            init_cfg=init_cfg,
        )
        if len(set(channels[1:])) > 1:
            raise ValueError(f'embed_dims={channels}: expected one width for all stages after the first')
        if any(c % heads for c, heads in zip(channels, num_heads, strict=True)):
            raise ValueError(f'num_heads={num_heads}: expected divisors of embed_dims={channels}')
        self.arch = arch
        self.window_size = window_size
        self.norm_eval = norm_eval
        self.patch_embed = ConvStem(in_channels, arch['stem_dims'], channels[0])
        if self.num_stages > 1:
            self.absolute_pos_embed = PositionEmbedding(channels[1], pos_embed_size)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_schedule(drop_path_rate, depths)[: self.num_stages]):
            blocks = [
                TransformerBlock(
                    self.build_attention(i, j),
                    channels[i],
                    mlp=Mlp(channels[i], ratio=arch['mlp_ratio']),
                    drop_path_rate=rate if i else 0.0,
                )
                for j, rate in enumerate(rates)
            ]
            more = i == 0 and self.num_stages > 1
            self.stages.append(Stage(blocks, Downsample(*channels[:2], 2) if more else None))
        self.build_pyramid(norm_eps=1e-5)
        self.freeze()

    def build_attention(self, stage: int, block: int) -> nn.Module:
        """The attention module of a block: outlook attention in stage 0, global or in windows after it."""
        channels, num_heads = self.arch['embed_dims'][stage], self.arch['num_heads'][stage]
        if stage == 0:
            return OutlookAttention(channels, num_heads)
        last = block == self.arch['depths'][stage] - 1
        return GlobalAttention(channels, num_heads, None if last else self.window_size)

    def stem_modules(self) -> list[nn.Module]:
        return [self.patch_embed, *([self.absolute_pos_embed] if self.num_stages > 1 else [])]

    def downsample(self, i: int, x: Tensor) -> Tensor:
        return self.absolute_pos_embed(super().downsample(i, x))

    def train(self, mode: bool = True) -> 'VOLO':
        super().train(mode)
        if self.norm_eval:
            keep_batch_norms(self)
        return self
