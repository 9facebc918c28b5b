"""The relatives of local self-attention: involution, decoupled dynamic filters, depthwise convolutions.

All take and give [B, H, W, C] for any H, W, and read zeros outside the map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmext_backbones.ops import elsa, filter_norm, tap_sum
from mmext_backbones.ops.torch_versions import is_compiling

from .batch_norm import BatchNorm2d

GROUP = 16  # channels that share a filter of an involution, at every width
COMBINATIONS = ('mul', 'add')


class Involution(nn.Module):
    """A filter of its own for every pixel and group of 16 channels, read from the pixel: no softmax, no projections.

    With a stride it is of the source's form: the filters are read from the means of stride x stride pixels.

    Source: Li et al., "Involution" (arXiv 2103.06255), and the authors' code.

    Args:
        embed_dims: C, a multiple of 16.
        kernel_size: odd edge of the neighbourhood.
        stride: of the map; H and W are multiples of it.

    Raises:
        ValueError: if 16 does not divide `embed_dims`, or the stride not the map.
    """

    def __init__(self, embed_dims: int, kernel_size: int = 7, stride: int = 1) -> None:
        if embed_dims % GROUP:
            raise ValueError(f'embed_dims={embed_dims}: expected a multiple of {GROUP}, the channels of a group')
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.num_heads = embed_dims // GROUP
        self.backend = 'auto'  # of the ELSA operator
        self.reduce = nn.Conv2d(embed_dims, embed_dims // 4, 1, bias=False)
        self.norm = BatchNorm2d(embed_dims // 4)
        self.expand = nn.Conv2d(embed_dims // 4, kernel_size**2 * self.num_heads, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        if self.stride == 1:
            filters = self.filters(x)
            x = elsa(
                x,
                filters,
                num_heads=self.num_heads,
                kernel_size=self.kernel_size,
                gamma=0,
                softmax=False,
                backend=self.backend,
            )  # [B, C, H, W]
        else:
            x = self.strided(x)
        return x.permute(0, 2, 3, 1)

    def filters(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, groups * K, H, W]."""
        return self.expand(F.relu(self.norm(self.reduce(x))))

    def strided(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H / stride, W / stride]."""
        (B, C, H, W), s = x.shape, self.stride
        if H % s or W % s:
            raise ValueError(f'a map of {H} x {W}: expected multiples of stride={s}')
        filters = self.filters(F.avg_pool2d(x, s)).view(B, self.num_heads, 1, -1, H // s, W // s)
        neighbours = F.unfold(x, self.kernel_size, padding=self.kernel_size // 2, stride=s)
        neighbours = neighbours.view(B, self.num_heads, GROUP, -1, H // s, W // s)
        return (filters * neighbours).sum(3).view(B, C, H // s, W // s)


class DecoupledDynamicFilter(nn.Module):
    """Filters of a pixel, joined with filters of a channel that depend on the whole image: DDF.

        out_c,i = sum_o ( S_i,o * T_c,o ) x_c,i+o      or, with 'add', S_i,o + T_c,o

    S is read from the pixel, T from the mean of the map; both are filter-normalised, T with a learnt factor a weight.

    Source: Zhou et al., "Decoupled Dynamic Filter Networks" (arXiv 2104.14107), and the authors' code.

    Args:
        embed_dims: C.
        num_heads: filters a pixel, each for C / num_heads channels; the source has 1.
        kernel_size: odd edge of the neighbourhood.
        combine: 'mul' or 'add'.
        gain: of the filter normalisation, see `ops.filter_norm`.
        dilation: distance between neighbouring taps, in tokens.

    Raises:
        ValueError: for another `combine`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int = 1,
        kernel_size: int = 7,
        *,
        combine: str = 'mul',
        gain: float = 2**0.5,
        dilation: int = 1,
    ) -> None:
        if combine not in COMBINATIONS:
            raise ValueError(f'combine={combine!r}: expected one of {", ".join(COMBINATIONS)}')
        super().__init__()
        self.num_heads, self.kernel_size, self.dilation = num_heads, kernel_size, dilation
        self.combine, self.gain = combine, gain
        hidden = max(1, int(0.2 * embed_dims))
        self.spatial = nn.Conv2d(embed_dims, num_heads * kernel_size**2, 1)
        self.channel1 = nn.Linear(embed_dims, hidden)
        self.channel2 = nn.Linear(hidden, embed_dims * kernel_size**2)
        self.channel_scale = nn.Parameter(torch.randn(embed_dims, kernel_size**2) * gain / kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        (B, C, H, W), k = x.shape, self.kernel_size
        spatial, channel = self.spatial_filter(x), self.channel_filter(x)
        if is_compiling():  # which may not know the number of images, and so of heads
            return self.by_taps(x, spatial, channel).permute(0, 2, 3, 1)
        if B == 0:  # the operator wants a head
            return x.permute(0, 2, 3, 1) * (spatial.sum() + channel.sum())
        static = channel.reshape(B * C, k, k)
        joined = {'ghost_mul': static, 'lam': 1, 'gamma': 0} if self.combine == 'mul' else {'ghost_add': static}
        x = elsa(  # images as heads, since each has filters of its channels of its own
            x.reshape(1, B * C, H, W),
            spatial.reshape(1, -1, H, W),
            **joined,
            num_heads=B * self.num_heads,
            kernel_size=k,
            dilation=self.dilation,
            softmax=False,
        )
        return x.view(B, C, H, W).permute(0, 2, 3, 1)

    def by_taps(self, x: Tensor, spatial: Tensor, channel: Tensor) -> Tensor:
        """The formula tap by tap, for recorded networks: [B, C, H, W] and the filters -> [B, C, H, W]."""
        heads = (self.num_heads, -1)
        of_pixel = spatial.unflatten(1, heads)[:, :, None].unbind(3)  # K of [B, heads, 1, H, W]
        of_channel = channel.unflatten(1, heads)[..., None, None].unbind(3)  # K of [B, heads, C / heads, 1, 1]
        join = torch.mul if self.combine == 'mul' else torch.add
        filters = map(join, of_pixel, of_channel)
        return tap_sum(x.unflatten(1, heads), filters, self.kernel_size, self.dilation).flatten(1, 2)

    def spatial_filter(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, num_heads * K, H, W]."""
        return filter_norm(self.spatial(x).unflatten(1, (self.num_heads, -1)), 2, self.gain).flatten(1, 2)

    def channel_filter(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, K]."""
        filters = self.channel2(F.relu(self.channel1(x.mean((2, 3))))).unflatten(1, self.channel_scale.shape)
        return filter_norm(filters, 2, self.kernel_size) * self.channel_scale  # that gain: a deviation of 1


class DynamicDepthwiseConv(nn.Module):
    """A depthwise convolution whose weights are computed from the mean of each image: [B, C, H, W] -> [B, C, H, W].

    Source: Han et al., "On the Connection between Local Attention and Dynamic Depth-wise Convolution"
    (arXiv 2106.04263), and the authors' code.
    """

    def __init__(self, channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.reduce = nn.Conv2d(channels, channels // 4, 1, bias=False)
        self.norm = BatchNorm2d(channels // 4)
        self.expand = nn.Conv2d(channels // 4, channels * kernel_size**2, 1)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        (B, C, H, W), k = x.shape, self.kernel_size
        weight = self.expand(F.relu(self.norm(self.reduce(x.mean((2, 3), keepdim=True)))))
        bias = self.bias[:, None, None].to(x.dtype)
        if is_compiling():  # which may not know the number of images, and so of groups
            return tap_sum(x, weight.unflatten(1, (C, -1)).unbind(2), k) + bias
        if B == 0:  # a convolution wants a group
            return x * weight.sum() + bias
        weight = weight.reshape(B * C, 1, k, k)
        x = F.conv2d(x.reshape(1, B * C, H, W), weight, padding=k // 2, groups=B * C)
        return x.view(B, C, H, W) + bias


class DepthwiseMixer(nn.Module):
    """A depthwise convolution between two pointwise ones, with batch norms: Swin's attention as Han et al. replace it.

    Their block norms nothing before it, and has a batch norm before its MLP.

    Source: Han et al. (arXiv 2106.04263), and the authors' code.

    Args:
        embed_dims: C.
        kernel_size: odd edge of the neighbourhood.
        dynamic: compute the weights from the image (`DynamicDepthwiseConv`).
    """

    def __init__(self, embed_dims: int, kernel_size: int = 7, dynamic: bool = False) -> None:
        super().__init__()
        C = embed_dims
        self.conv1, self.norm1 = nn.Conv2d(C, C, 1, bias=False), BatchNorm2d(C)
        self.conv2 = (
            DynamicDepthwiseConv(C, kernel_size)
            if dynamic
            else nn.Conv2d(C, C, kernel_size, padding=kernel_size // 2, groups=C)
        )
        self.norm2 = BatchNorm2d(C)
        self.conv3, self.norm3 = nn.Conv2d(C, C, 1, bias=False), BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x.permute(0, 3, 1, 2))))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.norm3(self.conv3(x)).permute(0, 2, 3, 1)
