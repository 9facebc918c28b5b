"""Averages over a fixed number of areas of a map, for any size of the map.

PyTorch's exporter writes `adaptive_avg_pool2d` as a pooling with the kernel of the size that was recorded, and says
nothing: at any other size the file is wrong. As two products with matrices that say which pixel belongs to which area,
computed from the size, it is right at every one.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar('Module', bound=nn.Module)


def adaptive_average_pool(x: Tensor, size: int | Sequence[int | None]) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d`: means over size x size areas that cover the map.

    Area i of an axis of n pixels runs from floor(i * n / size) to ceil((i + 1) * n / size); areas overlap where their
    number does not divide n.

    Args:
        x: The map, [B, C, H, W].
        size: Number of areas, or those along H and W; None keeps an axis.

    Returns:
        [B, C, size, size].
    """
    rows, columns = size if isinstance(size, Sequence) else (size, size)
    if rows == columns == 1:
        return x.mean(dim=(2, 3), keepdim=True)
    if columns is not None:
        x = x @ _shares(x.shape[3], columns, x)
    if rows is not None:
        x = (x.transpose(2, 3) @ _shares(x.shape[2], rows, x)).transpose(2, 3)
    return x


class AdaptiveAveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d`, by `adaptive_average_pool`."""

    def __init__(self, original: nn.AdaptiveAvgPool2d) -> None:
        super().__init__()
        self.output_size = original.output_size

    def forward(self, x: Tensor) -> Tensor:
        return adaptive_average_pool(x, self.output_size)


def pool_at_any_size(network: Module) -> Module:
    """Puts `AdaptiveAveragePool` in place of every `nn.AdaptiveAvgPool2d` of a network, which is changed."""
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.AdaptiveAvgPool2d:
                setattr(parent, name, AdaptiveAveragePool(module))
    return network


def _shares(pixels: int, areas: int, like: Tensor) -> Tensor:
    """The share of each pixel of an axis in the mean of each area, [pixels, areas]."""
    area = torch.arange(areas, device=like.device)
    start = torch.div(area * pixels, areas, rounding_mode='floor')
    stop = torch.div((area + 1) * pixels + areas - 1, areas, rounding_mode='floor')
    pixel = torch.arange(pixels, device=like.device)[:, None]
    inside = (pixel >= start) & (pixel < stop)
    return inside.to(like.dtype) / (stop - start).to(like.dtype)
