"""Padding and cropping as compilers record them, against what Python runs."""

import pytest
import torch

from mmext_backbones.ops import padding
from mmext_backbones.ops.padding import crop, mean_pool, zero_pad


@pytest.fixture
def recorded(monkeypatch):
    def run(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(padding, 'is_compiling', lambda: True)
            return function(*args)

    return run


@pytest.mark.parametrize('size', [(6, 8), (7, 8), (6, 9), (7, 9), (1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize('stride', [2, 3])
def test_mean_pool(recorded, size, stride):
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    out = mean_pool(x, stride)
    assert out.shape[2:] == tuple(-(-n // stride) for n in size)
    grad = torch.randn_like(out)
    again = recorded(mean_pool, x, stride)
    # to the last bit where the shares are powers of two
    rtol = 0 if stride == 2 else 1e-14
    torch.testing.assert_close(again, out, rtol=rtol, atol=0)
    (expected,), (actual,) = torch.autograd.grad(out, x, grad), torch.autograd.grad(again, x, grad)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0)


@pytest.mark.parametrize('size', [(5, 7), (4, 7), (5, 3), (1, 1)], ids=str)
def test_crop(recorded, size):
    x = torch.randn(2, 5, 7, 3, requires_grad=True)
    out, again = crop(x, *size), recorded(crop, x, *size)
    assert again.shape == (2, *size, 3)
    assert torch.equal(again, out)
    grad = torch.randn_like(out)
    assert torch.equal(torch.autograd.grad(again, x, grad)[0], torch.autograd.grad(out, x, grad)[0])


def test_nothing_to_pad_is_no_copy(recorded):
    x = torch.randn(2, 3, 4)
    assert zero_pad(x, (0, 0, 0, 0)) is x
    assert crop(x[..., None], 3, 4).data_ptr() == x.data_ptr()
    padded = zero_pad(x, (0, 1, 2, 0))
    assert padded.shape == (2, 5, 5)
    assert torch.equal(padded[:, 2:, :4], x)
    assert not padded[:, :2].any()
    assert not padded[..., 4].any()
    assert torch.equal(recorded(zero_pad, x, (0, 1, 2, 0)), padded)
    assert torch.equal(recorded(zero_pad, x, (0, 0, 0, 0)), x)
