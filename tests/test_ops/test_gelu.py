"""GELU without autograd against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.ops import norm_gelu
from mmext_backbones.ops.norm_gelu import cpu

NO_COMPILER = cpu._KERNELS.why_not()
compiled_only = pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
KERNELS = [pytest.param(True, marks=compiled_only, id='compiled'), pytest.param(False, id='torch')]


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(norm_gelu, 'why_not', lambda *tensors: 'not in this test')


@compiled_only
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_gelu_to_the_last_bits(dtype):
    x = torch.cat([torch.linspace(-40, 40, 8001), torch.randn(5000) * 1e-3, torch.tensor([50.0, -50.0, 0.0])]).to(dtype)
    out = norm_gelu.gelu(x, 'tanh')
    slope = torch.ones_like(x)
    assert torch.equal(norm_gelu.gelu_backward_(slope, x, 'tanh'), out)
    wide = x.double().requires_grad_()
    expected = wide * torch.sigmoid((8 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3))  # 1 + tanh(u) would cancel
    torch.testing.assert_close(expected, F.gelu(wide, approximate='tanh'), rtol=0, atol=1e-14)
    (expected_slope,) = torch.autograd.grad(expected.sum(), wide)
    eps = torch.finfo(dtype).eps
    assert ((out - expected).abs() <= 4 * eps * (expected.abs() + 0.05)).all()
    assert (slope - expected_slope).abs().max() <= 4 * eps + 2e-14  # the latter of the expected slope itself
    special = norm_gelu.gelu(torch.tensor([[float('nan'), float('inf')]], dtype=dtype), 'tanh')
    assert special.isnan().tolist() == [[True, False]]
    assert special[0, 1] == float('inf')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_gelu_of_narrow_types(dtype, kernels, monkeypatch):
    monkeypatch.setattr(norm_gelu, 'PART', 100)
    x = torch.randn(3, 7, 43, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = x.double().requires_grad_()
    expected = F.gelu(wide, approximate='tanh')
    expected.sum().backward()
    slope = torch.ones_like(x)
    eps = torch.finfo(dtype).eps
    for out, wanted in (
        (norm_gelu.gelu(x, 'tanh'), expected),
        (norm_gelu.gelu(x.clone(), 'tanh', inplace=True), expected),
        (norm_gelu.gelu_backward_(slope, x, 'tanh'), expected),
        (slope, wide.grad),
    ):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), wanted.detach(), rtol=eps, atol=eps / 8)
