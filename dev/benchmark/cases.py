"""Every case by name."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer

from .case import Case, Peer, Setting
from .peers import networks, operators, timm_operators
from .peers.swin_networks import SWIN_PEERS

__all__ = ['CASES', 'DEFAULT_CASES']


def network(cls: type, options: Mapping[str, Any] | None = None) -> Callable[[Setting, Peer], nn.Module]:
    """Builds ours as the peer needs it: its options, and its output norms or none."""

    def ours(setting: Setting, peer: Peer) -> nn.Module:
        stages = tuple(range(len(setting.arch['depths'])))
        model = cls(setting.arch, drop_path_rate=0.0, out_indices=stages, **(options or {}), **peer.options)
        for i in () if peer.out_norms else stages:
            model.add_module(f'norm{i}', nn.Identity())
        return model

    return ours


def images(setting: Setting) -> tuple[Tensor]:
    return (operators.random(setting.batch, 3, *setting.size),)


def _cases() -> list[Case]:
    swin, elsa, sequencer = SwinTransformer.ARCHS, ELSASwin.ARCHS, Sequencer2D.ARCHS
    volo, elsa_volo, raw = VOLO.ARCHS, ELSAVOLO.ARCHS, {'pyramid': False}
    return [
        Case('swin', 'Swin', swin, (448, 672), SWIN_PEERS, network(SwinTransformer), images),
        Case('elsa_swin', 'ELSA-Swin', elsa, (512, 672), networks.ELSA_PEERS, network(ELSASwin), images),
        Case('elsa_vs_swin', 'ELSA-Swin beside Swin', elsa, (512, 672), networks.SWIN, network(ELSASwin), images),
        Case('maxvit', 'MaxViT', MaxViT.ARCHS, (448, 672), networks.MAXVIT_PEERS, network(MaxViT), images),
        Case(
            'sequencer',
            'Sequencer2D as published',
            sequencer,
            (448, 672),
            networks.SEQUENCER_PEERS,
            network(Sequencer2D, {'patch_size': 7, 'pyramid': False}),
            images,
        ),
        Case('volo', 'VOLO as published', volo, (448, 672), networks.VOLO_PEERS, network(VOLO, raw), images),
        Case('elsa_volo', 'ELSA-VOLO', elsa_volo, (448, 672), networks.ELSA_VOLO_PEERS, network(ELSAVOLO, raw), images),
        Case(
            'elsa_volo_vs_volo',
            'ELSA-VOLO beside VOLO',
            elsa_volo,
            (448, 672),
            networks.VOLO_OURS,
            network(ELSAVOLO, raw),
            images,
        ),
        Case(
            'op:elsa',
            'ELSA operator',
            elsa,
            (512, 672),
            operators.ELSA_OP_PEERS,
            operators.our_elsa,
            operators.elsa_inputs,
            operators.stages_by(leave_out=1),
            operators.elsa_floor,
            differentiable=True,
        ),
        Case(
            'op:window_attention',
            'window attention of Swin, with its projections',
            swin,
            (448, 672),
            operators.WINDOW_PEERS,
            operators.our_window_attention,
            operators.map_inputs,
            operators.stages_by(('plain', 'shifted')),
            operators.window_floor,
            differentiable=True,
        ),
        Case(
            'op:partition_attention',
            'window and grid attention of MaxViT, with their projections',
            MaxViT.ARCHS,
            (448, 672),
            timm_operators.PARTITION_PEERS,
            timm_operators.our_partition,
            operators.map_inputs,
            operators.stages_by(('window', 'grid')),
            timm_operators.partition_floor,
            differentiable=True,
        ),
        Case(
            'op:bilstm',
            'BiLSTM2D of Sequencer2D',
            sequencer,
            (448, 672),
            timm_operators.BILSTM_PEERS,
            timm_operators.our_bilstm,
            timm_operators.bilstm_inputs,
            operators.stages_by(leave_out=2),  # the last stages are as the second
            timm_operators.bilstm_floor,
            differentiable=True,
        ),
    ]


CASES: Mapping[str, Case] = {case.name: case for case in _cases()}
DEFAULT_CASES = ('swin', 'elsa_swin', 'elsa_vs_swin', 'maxvit', 'sequencer', 'volo', 'op:elsa')
