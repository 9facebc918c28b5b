"""Products that compute their cheap input again, against the modules they stand for."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext_backbones.ops import norm_gelu
from mmext_backbones.ops.norm_gelu import cpu
from mmext_backbones.ops.recompute import BatchNorm, Conv, GatedBatchNorm, LayerNorm, Linear, recompute

C, OUT = 6, 10
NO_COMPILER = cpu._KERNELS.why_not()
compiled_only = pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
KERNELS = [pytest.param(True, marks=compiled_only, id='compiled'), pytest.param(False, id='torch')]


@pytest.fixture(params=KERNELS)
def kernels(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(cpu, 'why_not', lambda *tensors: 'not in this test')
        monkeypatch.setattr(norm_gelu, 'why_not', lambda *tensors: 'not in this test')


class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(C, 3), nn.Linear(3, C)

    def forward(self, x):  # [B, C, H, W]
        return x * torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3))))))[:, :, None, None]


class ChannelsFirst(nn.Sequential):
    def forward(self, x):
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def batch_norm(training):
    norm = nn.BatchNorm2d(C, eps=1e-3, momentum=0.3).train(training)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm


def function(norm, gelu):
    return BatchNorm(norm.running_mean, norm.running_var, norm.training, norm.momentum, norm.eps, gelu)


def layer_norm():
    return nn.LayerNorm(C, eps=1e-3), lambda m: (LayerNorm(m.eps), m.parameters())


def batch_norm_gelu(training, act):
    module = ChannelsFirst(batch_norm(training), *([nn.GELU('tanh')] if act else []))
    return module, lambda m: (function(m[0], act), m.parameters())


def gated(training):
    module = ChannelsFirst(batch_norm(training), nn.GELU('tanh'), SqueezeExcite())
    return module, lambda m: (GatedBatchNorm(function(m[0], True)), m.parameters())


# name -> a module, and how to make the prologue and its params from such a module
PROLOGUES = {
    'layer_norm': layer_norm,
    'batch_norm': lambda: batch_norm_gelu(True, False),
    'batch_norm_gelu': lambda: batch_norm_gelu(True, True),
    'batch_norm_gelu_eval': lambda: batch_norm_gelu(False, True),
    'gated': lambda: gated(True),
    'gated_eval': lambda: gated(False),
}
# name -> a module on [B, H, W, C], and the product
PRODUCTS = {
    'linear': lambda: (nn.Linear(C, OUT), Linear()),
    'linear_without_bias': lambda: (nn.Linear(C, OUT, bias=False), Linear()),
    'conv': lambda: (ChannelsFirst(nn.Conv2d(C, OUT, 3, padding=1)), Conv((1, 1), (1, 1), 1)),
    'depthwise': lambda: (
        ChannelsFirst(nn.Conv2d(C, C, 3, stride=2, padding=(1, 2), groups=C, bias=False)),
        Conv((2, 2), (1, 2), C),
    ),
}


def build(prologue, product, dtype=torch.float64):
    torch.manual_seed(0)
    cheap, from_module = PROLOGUES[prologue]()
    costly, function = PRODUCTS[product]()
    for parameter in [*cheap.parameters(), *costly.parameters()]:
        nn.init.normal_(parameter)
    plain = nn.Sequential(cheap, costly).to(dtype)
    ours = copy.deepcopy(plain)

    def run(x):
        weight, bias = [*ours[1].parameters(), None][:2]
        cheap_function, params = from_module(ours[0])
        return recompute(cheap_function, function, x, weight, bias, *params)

    return plain, ours, run


def image(dtype=torch.float64):
    """[2, 5, 7, C], away from zero, and neither contiguous nor channels first."""
    generator = torch.Generator().manual_seed(1)
    x = 3 + 2 * torch.randn(2, 7, 5, C, dtype=torch.float64, generator=generator)
    return x.to(dtype).transpose(1, 2)


def gradients(run, x, parameters):
    x = x.clone().requires_grad_()
    out = run(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out))
    return [out.detach(), x.grad, *[p.grad for p in parameters]]


@pytest.mark.parametrize('product', PRODUCTS)
@pytest.mark.parametrize('prologue', PROLOGUES)
def test_agrees_with_the_modules(prologue, product, kernels):
    plain, ours, run = build(prologue, product)
    expected = gradients(plain, image(), plain.parameters())
    for actual, wanted in zip(gradients(run, image(), ours.parameters()), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-9)
    for actual, wanted in zip(ours.buffers(), plain.buffers(), strict=True):
        if wanted.is_floating_point():  # counting calls is the module's business
            torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('prologue', PROLOGUES)
def test_frozen_tensors_get_no_gradient(prologue, kernels):
    plain, ours, run = build(prologue, 'linear')
    expected = gradients(plain, image(), plain.parameters())[1:]
    tensors = len(expected)
    for trained in ({0}, {1}, {tensors - 1}, {tensors - 2}, set(range(1, tensors))):
        _, ours, run = build(prologue, 'linear')
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


@pytest.mark.parametrize('product', ['linear', 'depthwise'])
@pytest.mark.parametrize('prologue', PROLOGUES)
@pytest.mark.parametrize('x_dtype', [torch.float32, torch.bfloat16], ids=str)
def test_autocast(prologue, product, x_dtype, kernels):
    plain, ours, run = build(prologue, product, torch.float32)

    def cast(run):
        def inner(x):
            with torch.autocast('cpu', torch.bfloat16):
                return run(x)

        return inner

    x = image(x_dtype)
    wide = copy.deepcopy(plain).double()
    exact = gradients(wide, x.double(), wide.parameters())
    expected = gradients(cast(plain), x, plain.parameters())
    actual = gradients(cast(run), x, ours.parameters())
    assert [t.dtype for t in actual] == [t.dtype for t in expected]
    for ours, theirs, true in zip(actual, expected, exact, strict=True):
        # what autocast makes of the modules, or as good: sums of differently rounded terms
        assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + 0.03 * true.abs().max()


@pytest.mark.parametrize('prologue', PROLOGUES)
def test_keeps_the_map_once(prologue):
    plain, _, run = build(prologue, 'linear')
    x = torch.randn(2, 40, 40, C, dtype=torch.float64, requires_grad=True)

    def maps_kept(run):
        storages = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: storages.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage()) and t, lambda t: t
        ):
            out = run(x)
        return sum(s.nbytes() for s in storages.values()) / x.nbytes, out

    assert maps_kept(run)[0] < 1.1
    assert maps_kept(plain)[0] > 1.5


@compiled_only
def test_moments_far_from_zero():
    x = (1000 + torch.randn(37, 61, 33)).float()  # squares of a million: the variance of 1 is in the last bits
    mean, var = torch.ops.mmext_backbones.moments(x)
    expected = torch.var_mean(x.double(), (0, 1), correction=0)
    torch.testing.assert_close(mean.double(), expected[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), expected[0], rtol=1e-4, atol=0)


@compiled_only
def test_number_of_threads_does_not_matter():
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            _, _, run = build('batch_norm_gelu', 'linear', torch.float32)
            results.append(gradients(run, torch.randn(3, 50, 40, C, generator=torch.Generator().manual_seed(2)), ()))
    finally:
        torch.set_num_threads(threads)
    for one, many in zip(*results, strict=True):
        # the kernels' sums do not depend on it; those of the products may
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)


def test_one_value_a_channel_has_no_variance(kernels):
    _, _, run = build('batch_norm', 'linear')
    with pytest.raises(ValueError, match=r'\(1, 1, 1, 6\): expected more than one value'):
        run(torch.zeros(1, 1, 1, C, dtype=torch.float64))


@compiled_only
def test_fake_tensors_pass():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        norm = nn.BatchNorm2d(C)
        x = torch.randn(2, 5, 7, C, requires_grad=True)
        weight = torch.randn(OUT, C, requires_grad=True)
        out = recompute(function(norm, True), Linear(), x, weight, None, norm.weight, norm.bias)
        out.sum().backward()
        assert out.shape == (2, 5, 7, OUT)
        assert x.grad.shape == x.shape
