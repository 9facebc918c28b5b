"""BiLSTM2D as its formula stands: one token of every sequence after the other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def bilstm2d_reference(x: Tensor, vertical: Sequence[Tensor], horizontal: Sequence[Tensor]) -> Tensor:
    """`ops.bilstm2d` without its checks, in float32 at least."""
    directions = ((vertical, 1), (horizontal, 2))
    return torch.cat([lstm_reference(x, weights, axis) for weights, axis in directions], dim=-1)


def lstm_reference(x: Tensor, weights: Sequence[Tensor], axis: int) -> Tensor:
    """A bidirectional LSTM along one axis of x [..., C], whose 8 `weights` are in nn.LSTM's order: [..., 2h]."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        wide = [weight.to(dtype) for weight in weights]
        states = [_walk(x.to(dtype), *wide[:4], axis, False), _walk(x.to(dtype), *wide[4:], axis, True)]
        return torch.cat(states, dim=-1).to(x.dtype)


def _walk(x: Tensor, W: Tensor, R: Tensor, b: Tensor, c: Tensor, axis: int, backwards: bool) -> Tensor:
    """The states of one direction, [..., h]."""
    steps = F.linear(x, W, b + c).unbind(axis)
    h = cell = torch.zeros_like(steps[0][..., : R.shape[1]])
    states = []
    for step in reversed(steps) if backwards else steps:
        i, f, g, o = (step + F.linear(h, R)).chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        h = o.sigmoid() * cell.tanh()
        states.append(h)
    return torch.stack(states[::-1] if backwards else states, dim=axis)
