"""The effective receptive field: how much every pixel moves an output, and numbers for its extent.

    G[p] = mean over the images of  sum over the input's channels of | d s / d x[channel, p] |
    s    = sum over the channels c of  max(y[c, centre], 0)

`y` is an output map and `centre` its token (h // 2, w // 2). Luo et al., "Understanding the Effective Receptive Field
in Deep Convolutional Neural Networks" (NeurIPS 2016), take the gradient of a central unit and average it over inputs.
That only what is positive counts in s is from Ding et al., "Scaling Up Your Kernels to 31x31" (CVPR 2022); here it is
needed: a fresh layer norm gives every token the same sum of channels, of which every gradient is 0.

The same for a module between tokens [B, H, W, C], `x` its input and `y` its output.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .recording import Call

__all__ = ['Extent', 'extent', 'level_fields', 'mixer_field']


def level_fields(backbone: nn.Module, images: Iterable[Tensor]) -> list[np.ndarray]:
    """G of every output level, [H, W] each, in pixels of the input.

    Args:
        backbone: In eval mode; any, whose outputs are maps [B, C, h, w].
        images: Of one size, [1, 3, H, W] each.
    """
    totals, number = None, 0
    for image in images:
        x = image.clone().requires_grad_()
        levels = backbone(x)
        sums = [_positive(level[0, :, level.shape[2] // 2, level.shape[3] // 2]) for level in levels]
        fields = [torch.autograd.grad(s, x, retain_graph=True)[0][0].abs().sum(dim=0).double() for s in sums]
        totals = fields if totals is None else [a + b for a, b in zip(totals, fields, strict=True)]
        number += 1
    return [(total / number).numpy() for total in totals]


def mixer_field(calls: Sequence[Call]) -> np.ndarray:
    """G of one module between its input and its output, [H, W] in tokens.

    Args:
        calls: Of the module, one for each image.
    """
    total = 0
    for call in calls:
        x = call.x[:1].detach().clone().requires_grad_()
        y = call.module(x, *call.context, **call.options)
        _, H, W, _ = y.shape
        total = total + torch.autograd.grad(_positive(y[0, H // 2, W // 2]), x)[0][0].abs().sum(dim=-1).double()
    return (total / len(calls)).numpy()


def _positive(y: Tensor) -> Tensor:
    return y.clamp(min=0).sum()


@dataclass
class Extent:
    """How far a field reaches.

    Attributes:
        half: Share of the area in the smallest set of places that holds half of the field.
        most: The same for 95 % of it.
        zero: Share of the area where the field is exactly 0.
        row: How much of the row through the centre is in the set of 95 %, in places. The row is a band as wide as the
            token at the centre.
        column: The same, down.
        diagonal: The same along both diagonals, their mean, in steps of one place across and one down.
    """

    half: float
    most: float
    zero: float
    row: float
    column: float
    diagonal: float

    @property
    def crossness(self) -> float:
        """Of axes to diagonals: 1 for an upright square, 1.4 for a disc; large for a cross."""
        return (self.row + self.column) / 2 / max(self.diagonal, 1e-9)


def extent(field: np.ndarray, centre: tuple[float, float], token: int = 1) -> Extent:
    """The numbers of a field [H, W].

    Args:
        field: G, not all 0.
        centre: Row and column of the middle of the token at the centre, in places: 0.5 for the middle of the first one.
        token: Its edge in places.

    Raises:
        ValueError: for a field that is 0 everywhere.
    """
    total = field.sum()
    if not total > 0:
        raise ValueError('the field is 0 everywhere: the output does not depend on the input')
    descending = np.sort(field, axis=None)[::-1]
    held = np.cumsum(descending) / total
    half, most = (int(np.searchsorted(held, share)) + 1 for share in (0.5, 0.95))
    kept = field >= descending[min(most, field.size) - 1]
    H, W = field.shape
    down = np.arange(H)[:, None] + 0.5 - centre[0]
    across = np.arange(W)[None] + 0.5 - centre[1]
    bands = [np.broadcast_to(abs(offset) < token / 2, field.shape)
             for offset in (down, across, down - across, down + across)]  # fmt: skip
    # on a diagonal one step meets a band of this width in as many places as on an axis
    row, column, falling, rising = ((kept & band).sum() / token for band in bands)
    return Extent(half / field.size, most / field.size, float((field == 0).mean()), row, column, (falling + rising) / 2)
