"""A trunk of two scales as a dense backbone: what Sequencer2D and VOLO share.

The first stage runs at a stride of `patch_size` pixels, all others at twice that. Their papers know classification
only, and nobody published a dense form. Ours derives four levels:

    level   stride           channels            from
    0       patch_size / 2   of the first stage  stage 0, upsampled by a 2 x 2 transposed convolution
    1       patch_size       of the first stage  stage 0
    2       2 * patch_size   of the last stage   the last stage
    3       4 * patch_size   of the last stage   the last stage, 2 x 2 mean

each with a norm of its own. `pyramid=False` returns the raw stage maps.

The image is zero-padded at the right and bottom to whole tokens of every stage, 2 * patch_size pixels, and the maps
are cropped to ceil(size / stride); the sources drop the remainder instead. Where there is none the numbers are the
sources'.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmext_backbones.layers import PatchConv2d
from mmext_backbones.ops.padding import crop, mean_pool, zero_pad

from .arguments import check_flag
from .base import DenseBackbone

__all__ = ['Downsample', 'TwoScaleBackbone']


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


class TwoScaleBackbone(DenseBackbone):
    """Base class: the padding, the loop over the stages, and the pyramid.

    A subclass calls this constructor, builds `patch_embed` and `stages`, then calls `build_pyramid` and `freeze`.

    Args:
        channels: of every stage.
        patch_size: stride of the first stage in pixels; even where there is a pyramid.
        pyramid: return four levels of strides patch_size / 2, 1, 2, 4 * patch_size. When False, the raw stage maps of
            strides patch_size and, for the other stages, 2 * patch_size.

    The other arguments are those of `DenseBackbone`.

    Raises:
        ValueError: if there is one stage only, or an argument is out of range.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        patch_size: int,
        pyramid: bool,
        in_channels: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        with_cp: bool | Sequence[int],
        recompute: bool | str,
        autocast_dtype: str | None,
        out_dtype: str | None,
        init_cfg: dict | None,
    ) -> None:
        check_flag('pyramid', pyramid)
        if len(channels) < 2:
            raise ValueError(f'embed_dims={channels}: expected two stages or more')
        p, last = patch_size, len(channels) - 1
        super().__init__(
            (channels[0], channels[0], channels[-1], channels[-1]) if pyramid else channels,
            (p // 2, p, 2 * p, 4 * p) if pyramid else (p, *[2 * p] * last),
            in_channels=in_channels,
            out_indices=out_indices,
            frozen_stages=frozen_stages,
            with_cp=with_cp,
            recompute=recompute,
            autocast_dtype=autocast_dtype,
            out_dtype=out_dtype,
            init_cfg=init_cfg,
            level_stages=(0, 0, last, last) if pyramid else None,
        )
        self._stage_channels = tuple(channels)
        self.patch_size = patch_size
        self.pyramid = pyramid

    @property
    def stage_strides(self) -> tuple[int, ...]:
        return (self.patch_size, *[2 * self.patch_size] * (self.num_stages - 1))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        return self._stage_channels

    def build_pyramid(self, norm_eps: float) -> None:
        """The upsampling and the norms of the levels that are returned, where there is a pyramid."""
        if not self.pyramid:
            return
        if 0 in self.out_indices:
            self.upsample = Upsample(self.out_channels[0])
        for i, c in zip(self.out_indices, self.out_channels, strict=True):
            self.add_module(f'norm{i}', nn.LayerNorm(c, eps=norm_eps))

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
                x = self.downsample(i, x)
        # [B, ceil(H/s), ceil(W/s), C] of stride s, from the padded maps
        sizes = {i: (-(-H // s), -(-W // s)) for i, s in zip(self.out_indices, self.out_strides, strict=True)}
        if not self.pyramid:
            return tuple(self.output(i, maps[i], sizes[i]) for i in self.out_indices)
        return tuple(self.output(i, self.level(i, maps, H, W), sizes[i]) for i in self.out_indices)

    def downsample(self, i: int, x: Tensor) -> Tensor:
        """From the map of stage i to what stage i + 1 takes."""
        return self.stages[i].downsample(x)

    def level(self, i: int, maps: Sequence[Tensor], H: int, W: int) -> Tensor:
        """Level i of the pyramid, [B, >= H/s, >= W/s, C], from the padded maps of the stages."""
        if i == 0:
            return self.upsample(maps[0])
        if i == 3:
            stride = 2 * self.patch_size
            x = crop(maps[-1], -(-H // stride), -(-W // stride)).permute(0, 3, 1, 2)
            return mean_pool(x, 2).permute(0, 2, 3, 1)
        return maps[0] if i == 1 else maps[-1]
