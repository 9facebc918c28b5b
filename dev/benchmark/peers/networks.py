"""The networks of others that ours are timed against, but for Swin's. Each takes an image batch and returns its maps,
finest first, built by its package from the numbers of one of our architectures.
"""

from functools import partial
from importlib import import_module

from torch import Tensor, nn

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, SwinTransformer
from mmext_backbones.layers import ELSAAttention

from ..case import WINDOW, Maps, Peer, Setting, at, by_our_names

__all__ = ['ELSA_PEERS', 'ELSA_VOLO_PEERS', 'MAXVIT_PEERS', 'SEQUENCER_PEERS', 'SWIN', 'VOLO_OURS', 'VOLO_PEERS']

VOLO_SIZE = (224, 224)  # of the positions that are stored

# ---------------------------------------------------------------------------------------------------------------------
# MaxViT, Sequencer2D and VOLO: timm


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


class VOLOStages(nn.Module):
    """What the stages of timm's VOLO return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        model.norm = nn.Identity()  # of the classifier

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(x, intermediates_only=True)


def timm_volo(setting: Setting) -> nn.Module:
    arch = setting.arch
    net = import_module('timm.models.volo').VOLO(
        layers=arch['depths'],
        img_size=setting.size,
        embed_dims=arch['embed_dims'],
        num_heads=arch['num_heads'],
        mlp_ratio=arch['mlp_ratio'],
        stem_hidden_dim=arch['stem_dims'],
        num_classes=0,
        post_layers=None,
    )
    return Maps(VOLOStages(net))


def positions_of_its_own(setting: Setting) -> str | None:
    if setting.size != VOLO_SIZE:
        return 'it holds positions of this size, and drops what is left over; ours resample those of 224 x 224, and pad'
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

VOLO_PEERS = (
    Peer(
        'timm',
        lambda: import_module('timm'),
        timm_volo,
        by_our_names,
        out_norms=False,
        differs=positions_of_its_own,
        agreeing=lambda setting: at(setting, VOLO_SIZE),
    ),
)

# ---------------------------------------------------------------------------------------------------------------------
# ELSA-Swin and ELSA-VOLO: their own unfolded forms, and our Swin and VOLO


def unfolded_elsa(cls: type, setting: Setting, **options) -> nn.Module:
    model = cls(setting.arch, drop_path_rate=0.0, out_indices=range(len(setting.arch['depths'])), **options)
    for module in model.modules():
        if isinstance(module, ELSAAttention):
            module.backend = 'reference'
    return model


def our_swin(setting: Setting) -> nn.Module:
    arch = {key: value for key, value in setting.arch.items() if key != 'group_width'}
    return SwinTransformer(arch, drop_path_rate=0.0, out_indices=range(len(arch['depths'])))


def our_volo(setting: Setting) -> nn.Module:
    arch = {key: value for key, value in setting.arch.items() if key not in ('kernel_size', 'group_width')}
    return VOLO(arch, drop_path_rate=0.0, pyramid=False)


ELSA_PEERS = (Peer('unfold', lambda: None, partial(unfolded_elsa, ELSASwin), by_our_names),)
SWIN = (Peer('swin', lambda: None, our_swin, None),)
ELSA_VOLO_PEERS = (Peer('unfold', lambda: None, partial(unfolded_elsa, ELSAVOLO, pyramid=False), by_our_names),)
VOLO_OURS = (Peer('volo', lambda: None, our_volo, None),)
