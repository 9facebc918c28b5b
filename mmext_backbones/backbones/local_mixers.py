"""The table of local mixers: what each name builds in a block of Swin's frame (`local_swin`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from mmext_backbones.layers import (
    DecoupledDynamicFilter,
    DepthwiseMixer,
    ELSAAttention,
    Involution,
    LocalAttention,
    WindowAttention,
)
from mmext_backbones.layers.local_attention import NORMALIZATIONS

HEADS = ('1', '1x', '2x', 'C')


class Slot(NamedTuple):
    """What a mixer is built for: one block.

    Attributes:
        embed_dims: channels.
        num_heads: heads, by the mixer's rule.
        normalization: of the weights, for `LocalAttention`.
        kernel_size: edge of a neighbourhood.
        window_size: edge of a window.
        shift_size: of the windows.
        shift_single_window: as of `WindowAttention`.
    """

    embed_dims: int
    num_heads: int
    normalization: str
    kernel_size: int
    window_size: int
    shift_size: int
    shift_single_window: bool


class Mixer(NamedTuple):
    """A row of the table.

    Attributes:
        build: the module of a block.
        last: the same in the last stage.
        heads: the heads it has when nobody asks for others; None where it has its own rule.
        normalization: of its weights, likewise.
    """

    build: Callable[[Slot], nn.Module]
    last: Callable[[Slot], nn.Module]
    heads: str | None = '1x'
    normalization: str | None = None


def _swin(slot: Slot) -> nn.Module:
    return WindowAttention(
        slot.embed_dims,
        slot.num_heads,
        slot.window_size,
        shift_size=slot.shift_size,
        shift_single_window=slot.shift_single_window,
    )


def _in_windows(*terms: str) -> Callable[[Slot], nn.Module]:
    return lambda slot: LocalAttention(
        slot.embed_dims,
        slot.num_heads,
        terms,
        normalization=slot.normalization,
        size=slot.window_size,
        shift_size=slot.shift_size,
        shift_single_window=slot.shift_single_window,
    )


def _over_neighbours(*terms: str) -> Callable[[Slot], nn.Module]:
    return lambda slot: LocalAttention(
        slot.embed_dims,
        slot.num_heads,
        terms,
        normalization=slot.normalization,
        region='neighbourhood',
        size=slot.kernel_size,
    )


def _elsa(**options) -> Mixer:
    return Mixer(
        lambda slot: ELSAAttention(slot.embed_dims, slot.num_heads, slot.kernel_size, group_width=4, **options), _swin
    )


def _everywhere(build: Callable[[Slot], nn.Module], heads: str | None = None, norm: str | None = None) -> Mixer:
    return Mixer(build, build, heads, norm)


# name -> terms of equation 4
NETS = {
    'net1': ('q.k',),
    'net2': ('q.r',),
    'net3': ('r.k',),
    'net4': ('b',),
    'net5': ('q.r', 'r.k'),
    'net6': ('q.r', 'r.k', 'b'),
    'net7': ('q.k', 'q.r', 'r.k', 'b'),
}
MIXERS: Mapping[str, Mixer] = {
    'swin': _everywhere(_swin, '1x'),
    **{name: _everywhere(_in_windows(*terms), '1x', 'softmax') for name, terms in NETS.items()},
    **{
        f'{name}-n': Mixer(_over_neighbours(*terms), _in_windows(*terms), '1x', 'softmax')
        for name, terms in {**NETS, 'swin': ('q.k', 'b')}.items()
    },
    'dwconv': _everywhere(_over_neighbours('b'), 'C', 'identity'),
    'elsa': _elsa(),
    'elsa-hadamard': _elsa(gamma=0.0),  # without the ghost head
    'elsa-strict': _elsa(gamma=0.0, strict=True),
    'elsa-full': _elsa(lam=1.0),  # with both halves of the ghost head, the default of the authors' layer
    'involution': _everywhere(lambda slot: Involution(slot.embed_dims, slot.kernel_size)),
    'ddf-mul': _everywhere(lambda slot: DecoupledDynamicFilter(slot.embed_dims, kernel_size=slot.kernel_size)),
    'ddf-add': _everywhere(
        lambda slot: DecoupledDynamicFilter(slot.embed_dims, kernel_size=slot.kernel_size, combine='add')
    ),
    'dwnet': _everywhere(lambda slot: DepthwiseMixer(slot.embed_dims, slot.kernel_size)),
    'dwnet-dynamic': _everywhere(lambda slot: DepthwiseMixer(slot.embed_dims, slot.kernel_size, dynamic=True)),
}


def find_mixer(mixer: str, heads: str | None, normalization: str | None) -> Mixer:
    """The row of a name, with the heads and the normalisation that are asked for; None for its own.

    Raises:
        ValueError: for names that are not known, or have no choice.
    """
    row = MIXERS.get(mixer) if isinstance(mixer, str) else None
    if row is None:
        raise ValueError(f'mixer={mixer!r}: expected one of {", ".join(MIXERS)}')
    for name, value, own, known in (
        ('heads', heads, row.heads, HEADS),
        ('normalization', normalization, row.normalization, NORMALIZATIONS),
    ):
        if value is None:
            continue
        if own is None:
            raise ValueError(f'{name}={value!r}: expected None, since mixer={mixer!r} has a rule of its own')
        if value not in known:
            raise ValueError(f'{name}={value!r}: expected one of {", ".join(known)}, or None')
    return row._replace(heads=heads or row.heads, normalization=normalization or row.normalization)


def heads_of_stages(heads: str | None, channels: Sequence[int], of_arch: Sequence[int]) -> list[int]:
    """Heads of each stage, by one of `HEADS`; `of_arch` where the mixer has a rule of its own.

    Raises:
        ValueError: if they do not divide the channels.
    """
    rules = {'1': lambda c, n: 1, '2x': lambda c, n: 2 * n, 'C': lambda c, n: c}
    rule = rules.get(heads, lambda c, n: n)
    numbers = [rule(c, n) for c, n in zip(channels, of_arch, strict=True)]
    if heads is not None and any(c % n for c, n in zip(channels, numbers, strict=True)):
        raise ValueError(f'num_heads={of_arch}, heads={heads!r}: expected divisors of the channels {list(channels)}')
    return numbers
