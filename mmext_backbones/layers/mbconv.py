"""The inverted bottleneck of MaxViT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext_backbones.ops.norm_gelu import gelu
from mmext_backbones.ops.padding import mean_pool
from mmext_backbones.ops.recompute import GatedBatchNorm, squeeze_excite_gate

from .conv import same_conv
from .functional import batch_norm_call, can_fold_norms, can_fuse


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

    def forward(self, x: Tensor) -> Tensor:
        if not can_fuse(*self.children()):
            x = x.permute(0, 3, 1, 2)  # [B, in_channels, H, W], channels last in memory
            x = self.act(self.norm1(self.conv1(self.pre_norm(x))))
            x = self.act(self.norm2(self.conv2(x)))
            return self.conv3(self.se(x)).permute(0, 2, 3, 1)

        norm0, norm1, norm2, se = self.pre_norm, self.norm1, self.norm2, self.se
        # by name: while FSDP has the weights gathered, `parameters()` of a module finds none
        gate = (se.fc1.weight, se.fc1.bias, se.fc2.weight, se.fc2.bias)
        if can_fold_norms(norm0, norm1, norm2):
            x = gelu(self.conv1.folded(x, norm1, norm0), 'tanh', inplace=True)
            x = gelu(self.conv2.folded(x, norm2), 'tanh', inplace=True)
            x.mul_(squeeze_excite_gate(x.mean((1, 2)), *gate)[:, None, None])
            return F.linear(x, self.conv3.weight.flatten(1), self.conv3.bias)

        x = self.conv1.after(batch_norm_call(norm0), x, norm0.weight, norm0.bias)
        x = self.conv2.after(batch_norm_call(norm1, gelu=True), x, norm1.weight, norm1.bias)
        gated = GatedBatchNorm(batch_norm_call(norm2, gelu=True))
        return self.conv3.after(gated, x, norm2.weight, norm2.bias, *gate)


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
