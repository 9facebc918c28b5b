"""Convolutions are right in bfloat16 where oneDNN's kernels are not, and what is kept from call to call is bounded."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.backbones import Sequencer2D, SwinTransformer
from mmext_backbones.layers import PatchEmbed
from mmext_backbones.ops import caching, conv
from mmext_backbones.ops.conv import conv2d
from mmext_backbones.ops.recompute import Conv


def poison() -> None:
    """Leaves NaN in the memory that the allocator gives out next."""
    for elements in (100, 1000, 10000, 100000):
        blocks = [torch.full((elements,), float('nan')) for _ in range(4)]
        del blocks


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest element; NaN counts as infinite."""
    difference = (actual.double() - expected).abs().max() / expected.abs().max()
    return difference.nan_to_num(nan=float('inf')).item()


# kernel, stride, padding, channels in and out, groups: those of the patch embeddings and of a MaxViT's convolutions
SHAPES = [(4, 4, 0, 3, 16, 1), (4, 4, 0, 16, 16, 1), (8, 8, 0, 8, 16, 1), (3, 2, 1, 3, 32, 1), (3, 2, 1, 64, 64, 64)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('autocast', [False, True])
def test_bfloat16_on_narrow_maps_and_wide_patches(shape, autocast):
    k, s, p, c_in, c_out, groups = shape
    torch.manual_seed(0)
    for H, W in itertools.product((1, 9, 22), (1, 2, 5)):
        x = torch.randn(2, c_in, H * s, W * s).bfloat16()
        weight = torch.randn(c_out, c_in // groups, k, k).bfloat16()
        expected = F.conv2d(x.double(), weight.double(), None, s, p, 1, groups)
        if autocast:
            x, weight = x.float(), weight.float()
        poison()
        with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            out = conv2d(x, weight, None, (s, s), (p, p), groups)
        assert out.dtype is torch.bfloat16
        assert error(out, expected) < 0.01, (H, W)  # two roundings


@pytest.mark.parametrize('channels', [64, 128])
def test_bfloat16_gradients_of_a_narrow_map(channels):
    torch.manual_seed(0)
    convolution = Conv((2, 2), (1, 1), channels)
    for H, W in itertools.product((1, 2, 3, 11), (1, 2, 3)):
        y, weight = torch.randn(2, H, W, channels).bfloat16(), torch.randn(channels, 1, 3, 3).bfloat16()
        grad = torch.randn_like(convolution.forward(y, weight, None))
        right = grad.double(), y.double(), weight.double()
        for gradient in (convolution.input_gradient, convolution.weight_gradient):
            poison()
            actual = gradient(grad, y, weight)
            assert actual.dtype is torch.bfloat16
            assert error(actual, gradient(*right)) < 0.01, (H, W)


def test_other_types_and_shapes_are_left_to_torch():
    x, weight = torch.randn(1, 16, 16, 4), torch.randn(8, 16, 4, 4)
    stride, padding = (4, 4), (0, 0)
    assert not conv._wrong_in_bfloat16(x, weight, stride, padding)
    assert conv._wrong_in_bfloat16(x.bfloat16(), weight, stride, padding)
    wide, rgb = torch.randn(1, 3, 16, 16).bfloat16(), torch.randn(8, 3, 4, 4)
    assert not conv._wrong_in_bfloat16(wide, rgb, stride, padding)
    assert not conv._wrong_in_bfloat16(x.bfloat16().to('meta'), weight, stride, padding)
    assert torch.equal(conv2d(x, weight, None, stride), F.conv2d(x, weight, None, 4))


def test_gradients_through_the_exception():
    torch.manual_seed(0)
    embed = PatchEmbed(16, 8).bfloat16()
    exact = PatchEmbed(16, 8).double()
    exact.load_state_dict(embed.state_dict())
    x = torch.randn(2, 16, 24, 4)
    for module, image in ((embed, x.bfloat16()), (exact, x.bfloat16().double())):
        out = module(image)
        (out.double() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    for actual, right in zip(embed.parameters(), exact.parameters(), strict=True):
        assert error(actual.grad, right.grad) < 0.05


@pytest.mark.parametrize(
    ('cls', 'arch', 'in_channels', 'size'),
    [
        (SwinTransformer, {'embed_dims': 8, 'depths': (1, 1), 'num_heads': (1, 2)}, 16, (64, 64)),
        (SwinTransformer, {'embed_dims': 8, 'depths': (1, 1), 'num_heads': (1, 2)}, 3, (88, 3)),
        (Sequencer2D, {'embed_dims': (16, 24), 'depths': (1, 1), 'hidden_dims': (4, 4)}, 3, (250, 9)),
    ],
)
def test_multispectral_and_narrow_images_under_autocast(cls, arch, in_channels, size):
    torch.manual_seed(0)
    model = cls(arch, in_channels=in_channels, out_indices=(0, 1), autocast_dtype='bfloat16').eval()
    x = torch.randn(2, in_channels, *size)
    poison()
    with torch.no_grad():
        outs = model(x)
        model.autocast_dtype = None
        for out, right in zip(outs, model(x), strict=True):
            assert error(out, right.double()) < 0.1


def test_large_tensors_are_not_kept(monkeypatch):
    made = []

    @caching.cache_tensors(2, lambda n: n)
    def zeros(n):
        made.append(n)
        return torch.zeros(n)

    monkeypatch.setattr(caching, 'LIMIT', 10)
    for n in (3, 3, 4, 5, 3, 11, 11):
        assert len(zeros(n)) == n
    assert made == [3, 4, 5, 3, 11, 11]  # the third size pushed out the first; 11 is over the limit
