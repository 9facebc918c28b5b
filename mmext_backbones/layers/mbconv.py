"""The inverted bottleneck of MaxViT, and convolutions padded as TensorFlow pads them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) rows and columns, as TensorFlow's SAME padding gives it.

    Where the padding is odd the larger half lies at the bottom and right: a 3 x 3 kernel of stride 2 pads an even size
    by 0 before and 1 after, and an odd one by 1 and 1. nn.Conv2d's `padding=1` would shift an even map by a pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        before, after = zip(*(self._pads(axis, size) for axis, size in enumerate(x.shape[-2:])), strict=True)
        if before == after:
            return F.conv2d(x, self.weight, self.bias, self.stride, before, self.dilation, self.groups)
        x = F.pad(x, (before[1], after[1], before[0], after[0]))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def _pads(self, axis: int, size: int) -> tuple[int, int]:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return total // 2, total - total // 2


def same_conv(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1, bias: bool = True
) -> SameConv2d:
    """SameConv2d with the initialisation of MaxViT's authors: normal of std 0.02, zero bias."""
    layer = SameConv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the authors' epsilon, and their momentum of 0.99 in torch's sense."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


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


class MBConv(nn.Module):
    """The branch of an inverted bottleneck: [B, in_channels, H, W] -> [B, out_channels, ceil(H/s), ceil(W/s)].

    Pre-norm; the width in between is 4 * out_channels, not in_channels; the depthwise convolution strides; the gate's
    bottleneck is a quarter of out_channels; nothing follows the last convolution.

    Source: Tu et al., "MaxViT" (arXiv 2204.01697), section 3.3, and the authors' code.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * out_channels
        self.pre_norm = batch_norm(in_channels)
        self.conv1 = same_conv(in_channels, hidden, bias=False)
        self.norm1 = batch_norm(hidden)
        self.conv2 = same_conv(hidden, hidden, 3, stride=stride, groups=hidden, bias=False)
        self.norm2 = batch_norm(hidden)
        self.se = SqueezeExcite(hidden, out_channels // 4)
        self.conv3 = same_conv(hidden, out_channels)
        self.act = nn.GELU('tanh')

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(self.pre_norm(x))))
        x = self.act(self.norm2(self.conv2(x)))
        return self.conv3(self.se(x))


class PooledShortcut(nn.Module):
    """What joins the branch of an MBConv: 2 x 2 mean where it strides, a projection where it widens.

    [B, in_channels, H, W] -> [B, out_channels, ceil(H/s), ceil(W/s)]. The mean at an odd edge is over the pixels that
    exist, as in TensorFlow.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = same_conv(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True, count_include_pad=False)
        return self.proj(x)
