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
by 8 / 7 as before) and derives four levels of strides 4 to 32 from the first and the last stage (`two_scales`), each
with a norm of its own. `patch_size=7, pyramid=False` is the published network, its outputs the raw stage maps.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from mmext_backbones.layers import BiLSTM2D, Mlp, PatchEmbed, Stage, TransformerBlock, drop_path_schedule
from mmext_backbones.registry import MODELS

from .arguments import check_flag, is_int, resolve_arch
from .two_scales import Downsample, TwoScaleBackbone


@MODELS.register_module()
class Sequencer2D(TwoScaleBackbone):
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
        recompute: bool | str = 'auto',
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
        super().__init__(
            channels,
            patch_size=patch_size,
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
        self.build_pyramid(norm_eps=1e-6)
        self.freeze()

    def build_mixer(self, embed_dims: int, hidden_dims: int) -> nn.Module:
        """The token mixer of a block."""
        return BiLSTM2D(embed_dims, hidden_dims)


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
