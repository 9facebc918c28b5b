"""The perceptron of a block against its modules, in parts and as a whole."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dev.fake_cuda import fake_cuda
from mmext_backbones.analysis.estimate import without_numbers
from mmext_backbones.ops import gpu_support, mlp, norm_gelu
from mmext_backbones.ops.mlp import norm_mlp
from mmext_backbones.ops.norm_gelu import cpu
from tests.torch_features import needs_fake_backward

C, HIDDEN = 6, 20
NO_COMPILER = cpu._KERNELS.why_not()
compiled_only = pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
KERNELS = [pytest.param(True, marks=compiled_only, id='compiled'), pytest.param(False, id='torch')]


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(norm_gelu, 'why_not', lambda *tensors: 'not in this test')


class Plus(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def build(approximate='none', dtype=torch.float64, residual=False):
    """The modules, a copy of them, and the function on the copy's weights."""
    torch.manual_seed(0)
    kind = Plus if residual else nn.Sequential
    plain = kind(nn.LayerNorm(C), nn.Linear(C, HIDDEN), nn.GELU(approximate), nn.Linear(HIDDEN, C)).to(dtype)
    for parameter in plain.parameters():
        nn.init.normal_(parameter)
    ours = copy.deepcopy(plain)
    options = {'eps': ours[0].eps, 'approximate': approximate, 'residual': residual}
    return plain, ours, lambda x: norm_mlp(x, *ours.parameters(), **options)


def image(dtype=torch.float64):
    """[2, 5, 7, C], not contiguous."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 7, 5, C, dtype=torch.float64, generator=generator).to(dtype).transpose(1, 2)


def gradients(run, x, parameters):
    x = x.clone().requires_grad_()
    out = run(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return [out.detach(), x.grad, *[p.grad for p in parameters]]


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@pytest.mark.parametrize('tokens', [3, 64, 4096])  # of 70: many parts, two, one
@pytest.mark.parametrize('residual', [True, False])
def test_agrees_with_the_modules(residual, approximate, tokens, kernels, monkeypatch):
    monkeypatch.setattr(mlp, 'TOKENS', tokens)
    plain, ours, run = build(approximate, residual=residual)
    expected = gradients(plain, image(), plain.parameters())
    for actual, wanted in zip(gradients(run, image(), ours.parameters()), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
    x = image()
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(run(x), expected[0], rtol=1e-9, atol=1e-9)
    assert torch.equal(x, before)


def test_no_tokens():
    _, _, run = build()
    out = run(torch.zeros(0, 5, 7, C, dtype=torch.float64))
    assert out.shape == (0, 5, 7, C)
    out.sum().backward()


def test_frozen_tensors_get_no_gradient():
    plain, _, _ = build()
    expected = gradients(plain, image(), plain.parameters())[1:]
    for trained in [{i} for i in range(len(expected))]:
        _, ours, run = build()
        x = image().requires_grad_(0 in trained)
        for i, parameter in enumerate(ours.parameters(), start=1):
            parameter.requires_grad_(i in trained)
        out = run(x)
        out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
        for i, tensor in enumerate([x, *ours.parameters()]):
            if i in trained:
                torch.testing.assert_close(tensor.grad, expected[i], rtol=1e-9, atol=1e-9)
            else:
                assert tensor.grad is None


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(approximate, x_dtype, kernels):
    plain, ours, run = build(approximate, torch.float32)

    def cast(run):
        def inner(x):
            with torch.autocast('cpu', torch.bfloat16):
                return run(x)

        return inner

    x, wide = image(x_dtype), copy.deepcopy(plain).double()
    exact = gradients(wide, x.double(), wide.parameters())
    expected = gradients(cast(plain), x, plain.parameters())
    actual = gradients(cast(run), x, ours.parameters())
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    for ours, theirs, true in zip(actual, expected, exact, strict=True):
        # what autocast makes of the modules, or as good: sums of differently rounded terms
        assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + 0.03 * true.abs().max()


def test_no_quiet_cast():
    _, _, run = build(dtype=torch.float32)
    with pytest.raises(ValueError, match=r'x is torch\.float64 and the weight torch\.float32'):
        run(image())


def test_a_second_backward_pass_needs_the_same():
    _, ours, run = build()
    x = image().requires_grad_()
    out = run(x).square().sum()
    first = torch.autograd.grad(out, [x, *ours.parameters()], retain_graph=True)
    second = torch.autograd.grad(out, [x, *ours.parameters()])
    assert all(map(torch.equal, first, second))


@needs_fake_backward
@pytest.mark.parametrize('reason', [None, 'not in this test'])
def test_off_the_cpu_the_gradient_of_the_map_is_not_copied(reason, monkeypatch):
    """In one part it is what the norm returns, by its kernel or without."""
    monkeypatch.setattr(gpu_support, 'why_not_rows', lambda *args: reason)
    names = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    plain, _, _ = build(dtype=torch.float32)
    with fake_cuda() as mode:
        plain = without_numbers(plain, mode, 'cuda')
        x = torch.empty(4, 5, C, requires_grad=True, device='cuda')
        out = norm_mlp(x, *plain.parameters(), eps=1e-5, residual=True)
        with Record():
            out.backward(torch.empty_like(out))
    norm = 'mmext_backbones::layer_norm_backward' if reason is None else 'aten::native_layer_norm_backward'
    assert norm in names
    assert not {name for name in names if 'copy' in name or 'clone' in name}
