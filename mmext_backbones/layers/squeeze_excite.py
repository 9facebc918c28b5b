"""The channel gate of MaxViT's inverted bottleneck."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .conv import same_conv


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from the means of all: [B, C, H, W] -> [B, C, H, W].

    Source: Hu et al., "Squeeze-and-Excitation Networks" (arXiv 1709.01507).
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = same_conv(channels, hidden)
        self.fc2 = same_conv(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.silu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)
