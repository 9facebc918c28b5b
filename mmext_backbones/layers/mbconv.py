"""The inverted bottleneck of MaxViT."""

from torch import Tensor, nn

from mmext_backbones.ops.padding import mean_pool

from . import fused
from .conv import same_conv
from .squeeze_excite import SqueezeExcite


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with the authors' epsilon, and their momentum of 0.99 in torch's sense."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class MBConv(nn.Module):
    """The branch of an inverted bottleneck: [B, H, W, in_channels] -> [B, ceil(H/s), ceil(W/s), out_channels].

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

    @fused.by(fused.mbconv)
    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)  # [B, in_channels, H, W], channels last in memory
        x = self.act(self.norm1(self.conv1(self.pre_norm(x))))
        x = self.act(self.norm2(self.conv2(x)))
        return self.conv3(self.se(x)).permute(0, 2, 3, 1)


class PooledShortcut(nn.Module):
    """What joins the branch of an MBConv: 2 x 2 mean where it strides, a projection where it widens.

    [B, H, W, in_channels] -> [B, ceil(H/s), ceil(W/s), out_channels]. The mean at an odd edge is over the pixels that
    exist, as in TensorFlow.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.proj = same_conv(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)  # [B, in_channels, H, W], channels last in memory
        if self.stride > 1:
            x = mean_pool(x, self.stride)
        return self.proj(x).permute(0, 2, 3, 1)
