"""Convolutions: of patches, padded as TensorFlow pads them, and of a product."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mmext_backbones.ops.conv import conv2d
from mmext_backbones.ops.padding import zero_pad
from mmext_backbones.ops.recompute import Conv, Linear, Prologue, recompute
from mmext_backbones.ops.torch_versions import is_compiling


class PatchConv2d(nn.Conv2d):
    """A convolution whose stride is its kernel: [B, C, H, W] -> [B, out_channels, H // p, W // p]."""

    def __init__(self, in_channels: int, out_channels: int, patch_size: int) -> None:
        super().__init__(in_channels, out_channels, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride)


class SameConv2d(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) rows and columns, as TensorFlow's SAME padding gives it.

    Where the padding is odd the larger half lies at the bottom and right: a 3 x 3 kernel of stride 2 pads an even size
    by 0 before and 1 after, and an odd one by 1 and 1. nn.Conv2d's `padding=1` would shift an even map by a pixel.
    """

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = (self._pads(axis, size) for axis, size in enumerate(x.shape[-2:]))
        # a recorded convolution with a stride does not ask the size (`ops.padding`)
        if (self.stride == (1, 1) or not is_compiling()) and (top, left) == (bottom, right):
            return conv2d(x, self.weight, self.bias, self.stride, (top, left), self.groups)
        x = zero_pad(x, (left, right, top, bottom))
        return conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)

    def after(self, prologue: Prologue, x: Tensor, *params: Tensor) -> Tensor:
        """The convolution of prologue(x, *params), of which x alone is kept (`ops.recompute`).

        [B, H, W, in_channels] -> [B, ceil(H / stride), ceil(W / stride), out_channels].
        """
        product, weight, region = self._product(x, self.weight)
        return region(recompute(prologue, product, x, weight, self.bias, *params))

    def folded(self, x: Tensor, norm: nn.BatchNorm2d, pre_norm: nn.BatchNorm2d | None = None) -> Tensor:
        """norm(conv(pre_norm(x))) by running statistics, which scale and shift the weights instead of the map.

        [B, H, W, in_channels] -> [B, ceil(H / stride), ceil(W / stride), out_channels]. A norm before is for kernels of
        1 x 1 alone: zeros around the map are not normed.
        """
        weight, bias = self.weight, self.bias
        if pre_norm is not None:
            scale = pre_norm.weight * (pre_norm.running_var + pre_norm.eps).rsqrt()
            bias = F.linear(pre_norm.bias - pre_norm.running_mean * scale, weight.flatten(1), bias)
            weight = weight * scale[:, None, None]
        stats = norm.running_mean, norm.running_var, norm.eps
        weight, bias = fuse_conv_bn_weights(weight, bias, *stats, norm.weight, norm.bias)
        product, weight, region = self._product(x, weight)
        return region(product.forward(x, weight, bias))

    def _product(self, x: Tensor, weight: Tensor) -> tuple[Linear | Conv, Tensor, Callable]:
        """This convolution of x [B, H, W, C] as `ops.recompute` has it, its weight, and what to take of its output."""
        if self.kernel_size == self.stride == (1, 1):
            return Linear(), weight.flatten(1), lambda out: out
        # where more is padded after than before: a stride more before, and the first output dropped. That copies the
        # output; F.pad would copy the input
        pads = [self._pads(axis, size) for axis, size in enumerate(x.shape[1:3])]
        top, left = (int(before < after) for before, after in pads)
        padding = (pads[0][0] + top * self.stride[0], pads[1][0] + left * self.stride[1])
        H, W = (-(-size // stride) for size, stride in zip(x.shape[1:3], self.stride, strict=True))
        product = Conv(self.stride, padding, self.groups)
        return product, weight, lambda out: out[:, top : top + H, left : left + W].contiguous()

    def _pads(self, axis: int, size: int) -> tuple[int, int]:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        total = (size - 1) // stride * stride + kernel - size
        if kernel < stride:
            total = max(0, total)
        return total // 2, total - total // 2


class FilterConv2d(nn.Conv2d):
    """The filter convolution of ELSA: stride 1, zeros around the map, as many channels out as in.

    A class of its own, so that `functional` knows that `ops.product_conv` may stand for it.
    """

    def __init__(self, channels: int, kernel_size: int, group_width: int) -> None:
        groups = channels // group_width
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=groups)


def same_conv(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1, bias: bool = True
) -> SameConv2d:
    """SameConv2d with the initialisation of MaxViT's authors: normal of std 0.02, zero bias."""
    layer = SameConv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
