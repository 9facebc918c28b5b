"""Convolutions: of patches, padded as TensorFlow pads them, and of ELSA's filters."""

from torch import Tensor, nn

from mmext_backbones.ops.conv import conv2d
from mmext_backbones.ops.padding import zero_pad
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
        (top, bottom), (left, right) = (self.pads(axis, size) for axis, size in enumerate(x.shape[-2:]))
        # a recorded convolution with a stride does not ask the size (`ops.padding`)
        if (self.stride == (1, 1) or not is_compiling()) and (top, left) == (bottom, right):
            return conv2d(x, self.weight, self.bias, self.stride, (top, left), self.groups)
        x = zero_pad(x, (left, right, top, bottom))
        return conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)

    def pads(self, axis: int, size: int) -> tuple[int, int]:
        """Zeros before and after the `size` rows (axis 0) or columns (axis 1) of a map."""
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        total = (size - 1) // stride * stride + kernel - size
        if kernel < stride:
            total = max(0, total)
        return total // 2, total - total // 2


class FilterConv2d(nn.Conv2d):
    """The filter convolution of ELSA: stride 1, zeros around the map, as many channels out as in."""

    def __init__(self, channels: int, kernel_size: int, group_width: int, dilation: int = 1) -> None:
        options = {'padding': kernel_size // 2 * dilation, 'dilation': dilation, 'groups': channels // group_width}
        super().__init__(channels, channels, kernel_size, **options)


def same_conv(
    in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1, groups: int = 1, bias: bool = True
) -> SameConv2d:
    """SameConv2d with the initialisation of MaxViT's authors: normal of std 0.02, zero bias."""
    layer = SameConv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
