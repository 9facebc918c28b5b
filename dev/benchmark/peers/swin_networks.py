"""Swin as others have it, built by each package from the numbers of one of our architectures."""

from collections.abc import Iterable
from functools import partial
from importlib import import_module

from torch import Tensor, nn

from ..case import WINDOW, Maps, Peer, Setting, at, by_our_names, optional
from .standalone import mmdet_swin

__all__ = ['SWIN_PEERS']


class StageOutputs(nn.Module):
    """What the stages of torchvision's Swin return; its `features` are stem, stage, merging, stage, ... in a row."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, module in enumerate(self.features):
            x = module(x)
            if i % 2:
                maps.append(x)
        return maps


def openmmlab_swin(load, setting: Setting) -> nn.Module:
    arch = setting.arch
    return load().SwinTransformer(
        embed_dims=arch['embed_dims'],
        depths=arch['depths'],
        num_heads=arch['num_heads'],
        window_size=WINDOW,
        strides=(4, *[2] * (len(arch['depths']) - 1)),
        out_indices=range(len(arch['depths'])),
        drop_path_rate=0.0,
    )


def mmpretrain_swin(setting: Setting) -> nn.Module:
    arch = {key: setting.arch[key] for key in ('embed_dims', 'depths', 'num_heads')}
    cls = import_module('mmpretrain.models.backbones.swin_transformer').SwinTransformer
    out_indices = range(len(arch['depths']))
    # small maps are padded, as in its configs for dense tasks
    return cls(arch, out_indices=out_indices, drop_path_rate=0.0, window_size=WINDOW, pad_small_map=True)


def timm_swin(setting: Setting) -> nn.Module:
    arch = setting.arch
    net = import_module('timm').create_model(
        'swin_tiny_patch4_window7_224',
        features_only=True,
        out_indices=tuple(range(len(arch['depths']))),
        img_size=setting.size,
        embed_dim=arch['embed_dims'],
        depths=arch['depths'],
        num_heads=arch['num_heads'],
        drop_path_rate=0.0,
    )
    return Maps(net, channels_last=True)


def torchvision_swin(setting: Setting) -> nn.Module:
    arch = setting.arch
    net = import_module('torchvision.models.swin_transformer').SwinTransformer(
        patch_size=[4, 4],
        embed_dim=arch['embed_dims'],
        depths=list(arch['depths']),
        num_heads=list(arch['num_heads']),
        window_size=[WINDOW, WINDOW],
        stochastic_depth_prob=0.0,
    )
    return Maps(StageOutputs(net.features), channels_last=True)


def stage_sizes(setting: Setting) -> Iterable[tuple[int, int]]:
    """Height and width of every map of a Swin, in tokens."""
    H, W = (-(-edge // 4) for edge in setting.size)
    for _ in setting.arch['depths']:
        yield H, W
        H, W = -(-H // 2), -(-W // 2)


def refuses_small_maps(setting: Setting) -> str | None:
    """timm shrinks its windows, and with them the bias tables, to maps that are smaller."""
    if any(min(size) < WINDOW for size in stage_sizes(setting)):
        return f'its windows shrink with a map of under {WINDOW} tokens, and its bias tables with them'
    return None


def one_axis_shifts(setting: Setting) -> str | None:
    if any((H > WINDOW) != (W > WINDOW) for H, W in stage_sizes(setting)):
        return 'it shifts a map that is one window high or wide along the other axis only'
    return None


def torchvision_differs(setting: Setting) -> str | None:
    if any(pixels % 4 for pixels in setting.size):
        return 'it drops what is left over beyond multiples of 4 pixels, which ours pads'
    return one_axis_shifts(setting)


def rolls_before_padding(setting: Setting) -> str | None:
    if any(H % WINDOW or W % WINDOW for H, W in stage_sizes(setting)):
        return 'it shifts the map before it pads it, so padded maps have other windows'
    return one_axis_shifts(setting)


def whole_windows(setting: Setting) -> Setting:
    """One image whose last map is one window."""
    edge = 4 * WINDOW * 2 ** (len(setting.arch['depths']) - 1)
    return at(setting, (edge, edge))


def load_mmseg():
    return import_module('mmseg.models.backbones.swin')


CLASSIFIER = {'shift_single_window': False}  # as the authors' classifiers, and those of timm and torchvision
SWIN_PEERS = (
    Peer('mmdet', mmdet_swin, partial(openmmlab_swin, mmdet_swin), by_our_names),
    Peer('mmpretrain', lambda: import_module('mmpretrain.models'), mmpretrain_swin, by_our_names),
    Peer(
        'timm',
        lambda: import_module('timm'),
        timm_swin,
        by_our_names,
        options=CLASSIFIER,
        out_norms=False,
        refuses=refuses_small_maps,
        differs=rolls_before_padding,
        agreeing=whole_windows,
    ),
    Peer(
        'torchvision',
        lambda: import_module('torchvision'),
        torchvision_swin,
        by_our_names,
        options=CLASSIFIER,
        out_norms=False,
        differs=torchvision_differs,
        agreeing=whole_windows,
    ),
    optional(Peer('mmseg', load_mmseg, partial(openmmlab_swin, load_mmseg), by_our_names)),
)
