"""MaxViT as a dense backbone for images of any size.

Tu et al., "MaxViT: Multi-Axis Vision Transformer" (arXiv 2204.01697): a block is an inverted bottleneck (MBConv), then
attention inside windows, for what is near, then attention inside a dilated grid over the whole map, for what is far.
Both cost time linear in the image.

    stage   stride   channels (tiny)   tokens at 224 x 224
    0       4        64                56 x 56
    1       8        128               28 x 28
    2       16       256               14 x 14
    3       32       512               7 x 7

The first block of every stage strides; an output is its stage's last block's.

Differences from the source, whose sizes must be multiples of 32 times the window:

- Any size: each attention pads its map and masks the padding (`layers.partition_attention`); the convolutions pad as
  TensorFlow does. Where the windows divide every map nothing is padded and the numbers are the source's.
- `window_size='scaled'` is the authors' set-up for detection, where the window grows with the image: ceil(H / 32) by
  ceil(W / 32), with resampled bias tables.
- The published networks have no norm for a map (their last one follows the pooling); `out_norm=True` adds fresh ones.
- Stochastic depth grows to `drop_path_rate` at the last block; the source's last block has (N - 1) / N of it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmext_backbones.layers import (
    DropPath,
    MBConv,
    Mlp,
    PartitionAttention,
    PooledShortcut,
    Stage,
    TransformerBlock,
    batch_norm,
    drop_path_schedule,
    fused,
    same_conv,
)
from mmext_backbones.ops.derivatives import is_transformed
from mmext_backbones.registry import MODELS

from .arguments import check_flag, is_int, resolve_arch
from .base import DenseBackbone, keep_batch_norms

HEAD_DIM = 32
SCALED = 'scaled'


class Stem(nn.Module):
    """Two 3 x 3 convolutions, the first of stride 2: [B, in_channels, H, W] -> [B, ceil(H/2), ceil(W/2), C]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = same_conv(in_channels, out_channels, 3, stride=2)
        self.norm1 = batch_norm(out_channels)
        self.act = nn.GELU('tanh')
        self.conv2 = same_conv(out_channels, out_channels, 3)

    @fused.by(fused.stem)
    def forward(self, x: Tensor) -> Tensor:
        if not is_transformed():  # vmap knows no memory formats
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.act(self.norm1(self.conv1(x)))
        return self.conv2(x).permute(0, 2, 3, 1)


class MaxViTBlock(nn.Module):
    """MBConv, window attention, grid attention: [B, H, W, C_in] -> [B, ceil(H/s), ceil(W/s), C].

    All five residual branches are under the same stochastic depth.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, window_size: int, drop_path_rate: float) -> None:
        super().__init__()

        def transformer(grid: bool) -> TransformerBlock:
            attn = PartitionAttention(channels, channels // HEAD_DIM, window_size, grid)
            return TransformerBlock(attn, channels, mlp=Mlp(channels, gelu='tanh'), drop_path_rate=drop_path_rate)

        self.shortcut = PooledShortcut(in_channels, channels, stride)
        self.conv = MBConv(in_channels, channels, stride)
        self.drop_path = DropPath(drop_path_rate)
        self.attn_window = transformer(grid=False)
        self.attn_grid = transformer(grid=True)

    def forward(self, x: Tensor, window_size: tuple[int, int]) -> Tensor:
        x = self.shortcut(x) + self.drop_path(self.conv(x))  # [B, H/s, W/s, C]
        x = self.attn_window(x, window_size)
        return self.attn_grid(x, window_size)


@MODELS.register_module()
class MaxViT(DenseBackbone):
    """MaxViT: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: tiny, small, base, large or xlarge, or a dict with the keys of `ARCHS`.
        window_size: edge of a window, and number of grid cells along an axis: 7, or 12 and 16 for the published
            384 x 384 and 512 x 512 weights; or 'scaled', ceil(H / 32) x ceil(W / 32) with bias tables resampled from
            those of 7.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks.
        out_norm: norm every output map, with fresh parameters.
        norm_eval: keep batch norm in eval mode, for few images a GPU; its weights still train.

    The arguments that it shares with every backbone are those of `DenseBackbone`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    BLOCK_CLASSES = (MaxViTBlock,)
    KEPT_MAPS = 100
    ARCHS: Mapping[str, Mapping] = {
        'tiny': {'embed_dims': (64, 128, 256, 512), 'depths': (2, 2, 5, 2), 'stem_dims': 64},
        'small': {'embed_dims': (96, 192, 384, 768), 'depths': (2, 2, 5, 2), 'stem_dims': 64},
        'base': {'embed_dims': (96, 192, 384, 768), 'depths': (2, 6, 14, 2), 'stem_dims': 64},
        'large': {'embed_dims': (128, 256, 512, 1024), 'depths': (2, 6, 14, 2), 'stem_dims': 128},
        'xlarge': {'embed_dims': (192, 384, 768, 1536), 'depths': (2, 6, 14, 2), 'stem_dims': 192},
    }

    def __init__(
        self,
        arch: str | Mapping = 'tiny',
        *,
        in_channels: int = 3,
        window_size: int | str = 7,
        drop_path_rate: float = 0.2,
        out_norm: bool = False,
        norm_eval: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        recompute: bool | str = 'auto',
        autocast_dtype: str | None = None,
        out_dtype: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.ARCHS)
        if window_size != SCALED and not (is_int(window_size) and window_size >= 1):
            raise ValueError(f'window_size={window_size!r}: expected at least 1, or {SCALED!r}')
        check_flag('out_norm', out_norm)
        check_flag('norm_eval', norm_eval)
        channels, depths = arch['embed_dims'], arch['depths']
        if any(c % HEAD_DIM for c in channels):
            raise ValueError(f'embed_dims={channels}: expected multiples of {HEAD_DIM}, the width of a head')
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
        self.window_size = window_size
        self.norm_eval = norm_eval
        self.stem = Stem(in_channels, arch['stem_dims'])
        self.stages = nn.ModuleList()
        table_window = 7 if window_size == SCALED else window_size
        widths = (arch['stem_dims'], *channels)
        for i, rates in enumerate(drop_path_schedule(drop_path_rate, depths)[: self.num_stages]):
            blocks = [
                MaxViTBlock(widths[i if j == 0 else i + 1], channels[i], 1 if j else 2, table_window, rate)
                for j, rate in enumerate(rates)
            ]
            self.stages.append(Stage(blocks))
        if out_norm:
            for i in self.out_indices:
                self.add_module(f'norm{i}', nn.LayerNorm(channels[i]))
        self.freeze()

    def stem_modules(self) -> list[nn.Module]:
        return [self.stem]

    def train(self, mode: bool = True) -> 'MaxViT':
        super().train(mode)
        if self.norm_eval:
            keep_batch_norms(self)
        return self

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        window_size = self.window_of(x.shape[-2:])
        x = self.stem(x)  # [B, H/2, W/2, C]
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = self.run_block(i, block, x, window_size)
            if any(i == index for index in self.out_indices):  # torch 2.4 compiles a plain `in` to False
                outs.append(self.output(i, x))
        return tuple(outs)

    def window_of(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Window (height, width) in tokens for an image of (H, W) pixels."""
        if self.window_size == SCALED:
            H, W = image_size
            return -(-H // 32), -(-W // 32)
        return self.window_size, self.window_size
