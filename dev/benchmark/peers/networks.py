"""The networks of others that ours are timed against, but for Swin's. Each takes an image batch and returns its maps,
finest first, built by its package from the numbers of one of our architectures.
"""

from importlib import import_module

from torch import Tensor, nn

from mmext_backbones.backbones import ELSASwin, SwinTransformer
from mmext_backbones.layers import ELSAAttention

from ..case import WINDOW, Maps, Peer, Setting, at, by_our_names

__all__ = ['ELSA_PEERS', 'MAXVIT_PEERS', 'SEQUENCER_PEERS', 'SWIN']

# ---------------------------------------------------------------------------------------------------------------------
# MaxViT and Sequencer2D: timm


class SequencerStages(nn.Module):
    """What the stages of timm's Sequencer2D return; its own feature extraction leaves the last one out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.stem, self.stages = model.stem, model.stages

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stem(x)
        return [x := stage(x) for stage in self.stages]


def timm_maxvit(setting: Setting) -> nn.Module:
    arch = setting.arch
    net = import_module('timm').create_model(
        'maxvit_tiny_tf_224',
        features_only=True,
        out_indices=tuple(range(1, len(arch['depths']) + 1)),
        img_size=setting.size,
        transformer_window_size=(WINDOW, WINDOW),
        embed_dim=arch['embed_dims'],
        depths=arch['depths'],
        stem_width=arch['stem_dims'],
        drop_path_rate=0.0,
    )
    return Maps(net)


def maxvit_refuses(setting: Setting) -> str | None:
    edge = WINDOW * 2 ** (len(setting.arch['depths']) + 1)
    if any(pixels % edge for pixels in setting.size):
        return f'with windows of {WINDOW} it takes images of multiples of {edge} only'
    return None


def timm_sequencer(setting: Setting) -> nn.Module:
    arch = setting.arch
    net = import_module('timm').create_model(
        'sequencer2d_s',
        layers=arch['depths'],
        embed_dims=arch['embed_dims'],
        hidden_sizes=arch['hidden_dims'],
        drop_path_rate=0.0,
    )
    return Maps(SequencerStages(net), channels_last=True)


def drops_the_remainder(setting: Setting) -> str | None:
    if any(pixels % 14 for pixels in setting.size):
        return 'it drops what is left over beyond multiples of 14 pixels, which ours pads'
    return None


MAXVIT_PEERS = (Peer('timm', lambda: import_module('timm'), timm_maxvit, by_our_names, refuses=maxvit_refuses),)
SEQUENCER_PEERS = (
    Peer(
        'timm',
        lambda: import_module('timm'),
        timm_sequencer,
        by_our_names,
        differs=drops_the_remainder,
        agreeing=lambda setting: at(setting, (70, 84)),
    ),
)

# ---------------------------------------------------------------------------------------------------------------------
# ELSA-Swin: its own unfolded form, and our Swin


def unfolded_elsa(setting: Setting) -> nn.Module:
    model = ELSASwin(setting.arch, drop_path_rate=0.0, out_indices=range(len(setting.arch['depths'])))
    for module in model.modules():
        if isinstance(module, ELSAAttention):
            module.backend = 'reference'
    return model


def our_swin(setting: Setting) -> nn.Module:
    arch = {key: value for key, value in setting.arch.items() if key != 'group_width'}
    return SwinTransformer(arch, drop_path_rate=0.0, out_indices=range(len(arch['depths'])))


ELSA_PEERS = (Peer('unfold', lambda: None, unfolded_elsa, by_our_names),)
SWIN = (Peer('swin', lambda: None, our_swin, None),)
