"""Modules and operators in a few words, with the numbers that they hold. A line break splits long words in two."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mmext_backbones.layers import GlobalAttention, OutlookAttention, PatchMerging, PooledShortcut, PositionEmbedding
from mmext_backbones.layers.conv import FilterConv2d
from mmext_backbones.layers.squeeze_excite import SqueezeExcite

__all__ = ['said_of_module', 'said_of_operator']


def said_of_module(module: nn.Module) -> str | None:
    """What a module does; '' if it does nothing to an image, None if that is for its children to say."""
    for cls, say in MODULES.items():
        if isinstance(module, cls):
            return say(module)
    return None


def said_of_operator(name: str, args: tuple) -> str | None:
    """What an operator of the dispatcher does, from the arguments of its call; None for those of no interest."""
    return OPERATORS[name](*args) if name in OPERATORS else None


def _conv(conv: nn.Conv2d | nn.ConvTranspose2d) -> str:
    kind = 'transposed conv' if conv.transposed else 'conv'
    words = f'{kind} {conv.kernel_size[0]} x {conv.kernel_size[1]}, '
    if conv.groups == conv.in_channels == conv.out_channels > 1:
        words += f'depthwise, {conv.in_channels}'
    else:
        words += f'{conv.in_channels} → {conv.out_channels}'
        if conv.groups > 1:
            words += f', groups of {conv.in_channels // conv.groups}'
    return words + (f', stride {conv.stride[0]}' if conv.stride[0] > 1 else '')


def _shortcut(shortcut: PooledShortcut) -> str:
    words = [f'{shortcut.stride} x {shortcut.stride} mean'] if shortcut.stride > 1 else []
    if isinstance(shortcut.proj, nn.Conv2d):
        words.append(_conv(shortcut.proj))
    return ', '.join(words)


def _window_attention(
    qkv: Tensor, bias: Tensor, padding: Tensor | None, num_heads: int, window: Any, scale: float, shift: int, grid: bool
) -> str:
    height, width = (int(edge) for edge in window)
    where = f'a grid of {height} x {width}' if grid else f'windows of {height} x {width}'
    return f'attention in {where},\n' + (f'shifted by {shift}, ' if shift else '') + f'{num_heads} heads'


def _global_attention(attn: GlobalAttention) -> str:
    edge = attn.window_size
    return f'{f"attention in windows of {edge} x {edge}" if edge else "global attention"},\n{attn.num_heads} heads'


def _outlook(attn: OutlookAttention) -> str:
    edge, stride = attn.kernel_size, attn.stride
    mean = f'{stride} x {stride} mean,\n' if stride > 1 else ''
    return f'{mean}outlook attention in {edge} x {edge},\n{attn.num_heads} heads'


def _elsa(v: Tensor, attn: Tensor, add: Tensor, kernel_size: int) -> str:
    return f'ELSA, {kernel_size} x {kernel_size} taps,\n{attn.shape[3]} heads'


def _bilstm2d(x: Tensor, weights: list[Tensor]) -> str:
    return f'LSTMs along columns and rows,\n{weights[1].shape[-1]} wide in each direction'


def _mean(x: Tensor, kernel_size: Any, *_: Any) -> str:
    return f'{kernel_size[0]} x {kernel_size[-1]} mean'


# the first that fits; what has children and stands here is one thing, and they are not looked at
MODULES: dict[type[nn.Module], Callable[[Any], str]] = {
    PooledShortcut: _shortcut,
    SqueezeExcite: lambda gate: (
        f'squeeze-excite {gate.fc1.in_channels} → {gate.fc1.out_channels} → {gate.fc2.out_channels}'
    ),
    PatchMerging: lambda merging: (
        f'2 x 2 neighbours joined, LayerNorm,\nlinear {merging.reduction.in_features} → '
        f'{merging.reduction.out_features}'
    ),
    OutlookAttention: _outlook,
    GlobalAttention: _global_attention,
    PositionEmbedding: lambda positions: 'positions added',
    nn.LayerNorm: lambda norm: 'LayerNorm',
    nn.BatchNorm2d: lambda norm: 'BatchNorm',
    nn.GELU: lambda act: 'GELU',
    nn.ReLU: lambda act: 'ReLU',
    nn.Linear: lambda linear: f'linear {linear.in_features} → {linear.out_features}',
    FilterConv2d: lambda conv: 'query times key,\n' + _conv(conv).replace(', groups', ',\ngroups'),
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv,
    nn.Dropout: lambda drop: '',
    nn.Identity: lambda identity: '',
}
OPERATORS: dict[str, Callable[..., str]] = {
    'mmext_backbones::window_attention': _window_attention,
    'mmext_backbones::elsa': _elsa,
    'mmext_backbones::bilstm2d': _bilstm2d,
    'aten::avg_pool2d': _mean,
}
