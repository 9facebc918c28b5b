"""What can be timed: a case of ours, and the peers it is timed against."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmext_backbones.weights.fitting import fit
from mmext_backbones.weights.layouts import family_of

from .roofline import Work

__all__ = ['WINDOW', 'Case', 'Maps', 'Peer', 'Setting', 'absence', 'by_our_names', 'pair', 'randomise']

WINDOW = 7  # of every network here, as published
Size = tuple[int, int]


class Setting(NamedTuple):
    """One problem to be solved by both sides.

    Attributes:
        arch: the numbers of the architecture, as in `ARCHS`.
        size: height and width of the image, in pixels.
        batch: images.
        part: the layer of the network that is timed; '' for the whole network.
    """

    arch: Mapping[str, Any]
    size: Size
    batch: int = 1
    part: str = ''


def _never(setting: Setting) -> str | None:
    return None


@dataclass(frozen=True)
class Peer:
    """Another implementation of a case.

    Attributes:
        name: how the command line calls it.
        load: imports what it needs.
        build: a module that takes and returns what ours does, with random weights.
        convert: the peer's state dict, and our module, to tensors by our names; gradients convert likewise. None
            where the two are different networks: they are timed and not compared.
        options: arguments of our network that make it do the peer's work.
        out_norms: whether the peer norms its maps.
        refuses: why it cannot run a setting, or None.
        differs: why its numbers differ from ours in a setting, or None.
        agreeing: a setting of the same layers in which they do not differ.
        by_default: take part where no peer is named.
    """

    name: str
    load: Callable[[], Any]
    build: Callable[[Setting], nn.Module]
    convert: Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]] | None
    options: Mapping[str, Any] = field(default_factory=dict)
    out_norms: bool = True
    refuses: Callable[[Setting], str | None] = _never
    differs: Callable[[Setting], str | None] = _never
    agreeing: Callable[[Setting], Setting] = lambda setting: setting
    by_default: bool = True


@dataclass(frozen=True)
class Case:
    """A network or a layer of ours.

    Attributes:
        name: how the command line calls it.
        title: what is printed.
        archs: the architectures by name; the first is the default.
        size: the default height and width of the image, in pixels.
        peers: in the order in which they are timed.
        ours: our module for a setting and a peer, with random weights.
        inputs: what both sides take, on the CPU.
        parts: the layers of the architecture that are timed; one '' for the whole network.
        work: bytes and operations that no implementation can do without; None where nobody counted them.
        differentiable: the inputs want a gradient: a layer's do, an image does not.
    """

    name: str
    title: str
    archs: Mapping[str, Mapping[str, Any]]
    size: Size
    peers: Sequence[Peer]
    ours: Callable[[Setting, Peer], nn.Module]
    inputs: Callable[[Setting], tuple[Tensor, ...]]
    parts: Callable[[Mapping[str, Any]], Sequence[str]] = lambda arch: ('',)
    work: Callable[[Setting, torch.dtype], Work] | None = None
    differentiable: bool = False


def absence(peer: Peer) -> str | None:
    """Why a peer cannot be imported, or None. A version that OpenMMLab refuses is an AssertionError there."""
    try:
        peer.load()
    except (ImportError, AssertionError, OSError, RuntimeError) as error:
        return f'{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else "no message"}'
    return None


def pair(case: Case, peer: Peer, setting: Setting, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Ours and the peer's, with the same random weights where they are the same network.

    Raises:
        RuntimeError: where a tensor of ours is not among the peer's; torch's message names it.
    """
    torch.manual_seed(seed)
    theirs = randomise(peer.build(setting))
    ours = randomise(case.ours(setting, peer))
    if peer.convert is not None:
        ours.load_state_dict(peer.convert(theirs.state_dict(), ours))
    return ours, theirs


def randomise(model: nn.Module) -> nn.Module:
    """Moves every parameter and statistic off the constant it starts at, which would hide two swapped tensors."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
        for name, buffer in model.named_buffers():
            if name.endswith('running_mean'):
                buffer.normal_(std=0.1)
            elif name.endswith('running_var'):
                buffer.uniform_(0.5, 1.5)
    return model


def at(setting: Setting, size: Size) -> Setting:
    """The setting with one image of another size."""
    return setting._replace(size=size, batch=1)


def optional(peer: Peer) -> Peer:
    """The peer, to be asked for by name."""
    return replace(peer, by_default=False)


def by_our_names(tensors: Mapping[str, Tensor], ours: nn.Module) -> dict[str, Tensor]:
    """A state dict of any layout that `weights` knows, in ours."""
    return fit(tensors, ours.state_dict(), family_of(type(ours)), 'the peer')[0]


class Maps(nn.Module):
    """The maps of `net` as dense [B, C, H, W], of a network that returns them otherwise.

    Args:
        net: returns the maps.
        channels_last: they are [B, H, W, C].
    """

    def __init__(self, net: nn.Module, channels_last: bool = False) -> None:
        super().__init__()
        self.net = net
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.net(x)
        return [(map_.permute(0, 3, 1, 2) if self.channels_last else map_).contiguous() for map_ in maps]
