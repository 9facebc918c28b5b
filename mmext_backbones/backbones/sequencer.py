"""Sequencer2D as a dense backbone.

Tatsunami and Taki, "Sequencer: Deep LSTM for Image Classification" (arXiv 2205.01972): a transformer block whose
attention gives way to two bidirectional LSTMs, one along columns and one along rows.

    stage   stride   channels   tokens at 224 x 224      published stride   tokens
    0       8        192        28 x 28                  7                  32 x 32
    1       16       384        14 x 14                  14                 16 x 16
    2       16       384        14 x 14                  14                 16 x 16
    3       16       384        14 x 14                  14                 16 x 16

The published network has patches of 7 pixels and is a trunk of two resolutions; nobody published a dense form. Ours,
the default, has patches of 8 (`weights.resize` resamples the published kernel so that it answers to an image enlarged
by 8 / 7 as before) and derives four levels:

    level   stride   channels   from
    0       4        192        stage 0, upsampled by a 2 x 2 transposed convolution
    1       8        192        stage 0
    2       16       384        the last stage
    3       32       384        the last stage, 2 x 2 mean

each with a norm of its own. `patch_size=7, pyramid=False` is the published network, its outputs the raw stage maps.

The image is zero-padded at the right and bottom to whole tokens of every stage, 2 * patch_size pixels, and the maps
are cropped to ceil(size / stride); the source drops the remainder instead. Where there is none the numbers are the
source's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmext_backbones.layers import BiLSTM2D, Mlp, PatchConv2d, PatchEmbed, Stage, TransformerBlock, drop_path_schedule
from mmext_backbones.ops.padding import crop, mean_pool, zero_pad
from mmext_backbones.registry import MODELS

from .arguments import check_flag, is_int, resolve_arch
from .base import DenseBackbone


class Downsample(PatchConv2d):
    """Convolution of whole patches on a map: [B, H, W, C_in] -> [B, H/p, W/p, C]. With p = 1 it is a linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Upsample(nn.ConvTranspose2d):
    """Transposed convolution: [B, H, W, C] -> [B, 2H, 2W, C]. A fresh one repeats each token four times."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 2, stride=2)
        with torch.no_grad():
            self.weight.copy_(torch.eye(channels)[:, :, None, None].expand_as(self.weight))
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@MODELS.register_module()
class Sequencer2D(DenseBackbone):
    """Sequencer2D: [B, in_channels, H, W] -> maps of strides 4, 8, 16, 32, any H and W.

    Args:
        arch: small, medium or large, or a dict with the keys of `ARCHS`.
        patch_size: edge of a patch in pixels; 7 is the published one, and has no pyramid.
        pyramid: return four levels of strides patch_size / 2, 1, 2, 4 * patch_size. When False, the raw stage maps of
            strides patch_size and, for the other stages, 2 * patch_size.
        drop_path_rate: stochastic depth of the last block; linear from 0 over all blocks.
        out_indices: levels, or without the pyramid stages, whose maps are returned, ascending.
        frozen_stages: -1 nothing; 0 the stem; n >= 1 the stem and the first n stages, with `norm0` to `norm{n-1}`.

    The arguments that it shares with every backbone are those of `DenseBackbone`.

    Raises:
        ValueError: if an argument or the shape of the input is out of range.
    """

    BLOCK_CLASSES = (TransformerBlock,)
    ARCHS: Mapping[str, Mapping] = {
        'small': {'embed_dims': (192, 384, 384, 384), 'depths': (4, 3, 8, 3), 'hidden_dims': (48, 96, 96, 96)},
        'medium': {'embed_dims': (192, 384, 384, 384), 'depths': (4, 3, 14, 3), 'hidden_dims': (48, 96, 96, 96)},
        'large': {'embed_dims': (192, 384, 384, 384), 'depths': (8, 8, 16, 4), 'hidden_dims': (48, 96, 96, 96)},
    }

    def __init__(
        self,
        arch: str | Mapping = 'small',
        *,
        in_channels: int = 3,
        patch_size: int = 8,
        pyramid: bool = True,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        autocast_dtype: str | None = None,
        out_dtype: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.ARCHS)
        check_flag('pyramid', pyramid)
        if not is_int(patch_size) or patch_size < 1 or (pyramid and patch_size % 2):
            raise ValueError(
                f'patch_size={patch_size!r}: expected an even number for the pyramid, or pyramid=False (the published '
                'network has 7)'
            )
        channels, depths, hidden = arch['embed_dims'], arch['depths'], arch['hidden_dims']
        if len(depths) < 2:
            raise ValueError(f'depths={depths}: expected two stages or more')
        p, last = patch_size, len(depths) - 1
        super().__init__(
            (channels[0], channels[0], channels[-1], channels[-1]) if pyramid else channels,
            (p // 2, p, 2 * p, 4 * p) if pyramid else (p, *[2 * p] * (len(depths) - 1)),
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            autocast_dtype=autocast_dtype,
            out_dtype=out_dtype,
            init_cfg=init_cfg,
            level_stages=(0, 0, last, last) if pyramid else None,
        )
        self.patch_size = patch_size
        self.pyramid = pyramid
        self.patch_embed = PatchEmbed(in_channels, channels[0], patch_size, norm=False)
        self.stages = nn.ModuleList()
        for i, rates in enumerate(drop_path_schedule(drop_path_rate, depths)[: self.num_stages]):
            blocks = [
                TransformerBlock(
                    self.build_mixer(channels[i], hidden[i]),
                    channels[i],
                    mlp=Mlp(channels[i], ratio=3),
                    norm_eps=1e-6,
                    drop_path_rate=rate,
                )
                for rate in rates
            ]
            more = i + 1 < self.num_stages
            self.stages.append(Stage(blocks, Downsample(*channels[i : i + 2], 1 if i else 2) if more else None))
        _init_as_published(self)
        if pyramid:
            if 0 in self.out_indices:
                self.upsample = Upsample(channels[0])
            for i, c in zip(self.out_indices, self.out_channels, strict=True):
                self.add_module(f'norm{i}', nn.LayerNorm(c, eps=1e-6))
        self.freeze()

    def build_mixer(self, embed_dims: int, hidden_dims: int) -> nn.Module:
        """The token mixer of a block."""
        return BiLSTM2D(embed_dims, hidden_dims)

    def stem_modules(self) -> list[nn.Module]:
        return [self.patch_embed]

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        H, W = x.shape[-2:]
        whole = 2 * self.patch_size
        pad_h, pad_w = -(-H // whole) * whole - H, -(-W // whole) * whole - W
        x = zero_pad(x, (0, pad_w, 0, pad_h))
        x = self.patch_embed(x)  # [B, H/p, W/p, C]
        maps = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = self.run_block(i, block, x)
            maps.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        # [B, ceil(H/s), ceil(W/s), C] of stride s, from the padded maps
        sizes = {i: (-(-H // s), -(-W // s)) for i, s in zip(self.out_indices, self.out_strides, strict=True)}
        if not self.pyramid:
            return tuple(self.output(i, maps[i], sizes[i]) for i in self.out_indices)
        return tuple(self.output(i, self.level(i, maps, H, W), sizes[i]) for i in self.out_indices)

    def level(self, i: int, maps: Sequence[Tensor], H: int, W: int) -> Tensor:
        """Level i of the pyramid, [B, >= H/s, >= W/s, C], from the padded maps of the stages."""
        if i == 0:
            return self.upsample(maps[0])
        if i == 3:
            stride = 2 * self.patch_size
            x = crop(maps[-1], -(-H // stride), -(-W // stride)).permute(0, 3, 1, 2)
            return mean_pool(x, 2).permute(0, 2, 3, 1)
        return maps[0] if i == 1 else maps[-1]


def _init_as_published(model: nn.Module) -> None:
    """The authors' initialisation; the LSTMs have it from torch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if '.mlp.' in name:
                nn.init.normal_(module.bias, std=1e-6)
            else:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            nn.init.trunc_normal_(module.weight, std=fan_in**-0.5 / 0.8796)  # the cut at two deviations undone
            nn.init.zeros_(module.bias)
