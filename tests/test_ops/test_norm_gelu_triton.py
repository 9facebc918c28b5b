"""The Triton kernels of layer norm and of GELU's gradient against PyTorch in float64, alone and in a block.

They run on a GPU where there is one, else in Triton's interpreter. That must be asked for before Triton is imported:
in a process that has not, one test runs this file in another that has.
"""

import copy
import importlib
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext_backbones.layers import BiLSTM2D, Mlp, PatchMerging, TransformerBlock, WindowAttention, fused
from mmext_backbones.ops import gpu_support, norm_gelu
from mmext_backbones.ops.layer_norm import gpu
from mmext_backbones.ops.norm_gelu import gpu as gelu_gpu
from tests.conftest import randomize
from tests.torch_features import needs_interpreter

INTERPRETER = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cuda' if torch.cuda.is_available() and not INTERPRETER else 'cpu'
HERE = INTERPRETER or DEVICE == 'cuda'
NO_TRITON = gpu_support.why_not_rows('layer_norm', torch.device(DEVICE), torch.float32) if HERE else None
pytestmark = pytest.mark.skipif(NO_TRITON is not None, reason=f'triton: {NO_TRITON}')
# One rounding of a result, twice that where the interpreter cuts bfloat16 off; float32 has sums of thousands
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11 * 1.01, torch.bfloat16: 2**-7 * 1.01}
half, bfloat, single = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def _several_programs(monkeypatch):
    monkeypatch.setattr(gpu_support, 'LEAST_TILES', 2)
    monkeypatch.setattr(gpu_support, 'PROGRAMS_PER_PROCESSOR', 3)
    monkeypatch.setattr(gpu_support, 'processors', lambda device: 1)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_close(actual, expected, names='', allowed=None):
    """Within one rounding of the largest element."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        tolerance = ROUNDING[a.dtype] if allowed is None else allowed
        atol = tolerance * max(e.abs().max().item(), 1e-3) if e.numel() else 0
        torch.testing.assert_close(a.double(), e.double(), rtol=0, atol=atol, msg=lambda text, i=i: f'{i}: {text}')


def norm(x, weight, bias, grad, skip, eps=1e-5, dtype=None, again=True):
    """The map by the forward pass and by the backward pass, and the gradients, by the kernels."""
    y = gpu.forward(x, weight, bias, eps, grad.dtype if dtype is None else dtype)
    return y, *gpu.backward(grad, x, weight, bias, eps, skip, again)


def exact_norm(x, weight, bias, grad, skip, eps=1e-5):
    leaves = [each.double().requires_grad_() for each in (x, weight, bias)]
    y = F.layer_norm(leaves[0], x.shape[-1:], *leaves[1:], eps)
    grads = torch.autograd.grad(y, leaves, grad.double())
    return y.detach(), y.detach(), grads[0] if skip is None else grads[0] + skip.double(), *grads[1:]


def norm_tensors(*shape, x=single, y=single, params=single, skip=True):
    C = shape[-1]
    tensors = random(*shape, dtype=x), 1 + random(C, dtype=params, seed=1), random(C, dtype=params, seed=2)
    return *tensors, random(*shape, dtype=y, seed=3), random(*shape, dtype=x, seed=4) if skip else None


@pytest.mark.parametrize('skip', [True, False])
@pytest.mark.parametrize('C', [1, 5, 16, 45, 96, 130, 768, 1536, 2049])
def test_norm_of_any_width(C, skip):
    tensors = norm_tensors(3, 7 if C < 200 else 2, C, skip=skip)
    assert_close(norm(*tensors), exact_norm(*tensors))


@pytest.mark.parametrize(
    ('x', 'y', 'params'),
    [
        (single, half, single),
        (single, bfloat, single),
        (half, half, half),
        (bfloat, bfloat, single),
        (half, single, half),
    ],
)
def test_norm_of_each_type_is_computed_in_float32_and_rounded_once(x, y, params):
    tensors = norm_tensors(5, 9, 45, x=x, y=y, params=params)
    results = norm(*tensors)
    assert [each.dtype for each in results] == [y, y, x, params, params]
    assert_close(results, exact_norm(*tensors))
    assert torch.equal(results[0], results[1])


def test_norm_of_rows_that_are_far_from_zero_constant_and_huge():
    x, *others = norm_tensors(40, 96)
    x = x + 1000  # the variance of 1 is in the last bits of the squares
    expected = exact_norm(x, *others)
    assert_close(norm(x, *others), expected, allowed=1e-4)
    x = x.clone()
    x[3], x[5] = 7.0, 1e18
    y, *grads = norm(x, *others)
    assert torch.equal(y[3], others[1])  # the bias
    assert all(each[3].isfinite().all() for each in (y, *grads[:2]))


def test_norm_without_eps_of_a_number_of_rows_that_fills_no_block():
    tensors = norm_tensors(3, 45)
    results = norm(*tensors, eps=0.0)
    assert_close(results, exact_norm(*tensors, eps=0.0), allowed=1e-5)


@pytest.mark.parametrize('shape', [(0, 45), (2, 0, 3, 45)])
def test_norm_of_nothing(shape):
    tensors = norm_tensors(*shape)
    y, again, grad_x, grad_weight, grad_bias = norm(*tensors)
    assert y.shape == again.shape == grad_x.shape == shape
    assert torch.equal(grad_weight, torch.zeros_like(grad_weight))
    assert torch.equal(grad_bias, torch.zeros_like(grad_bias))


def test_norm_of_views_gives_the_same_bits():
    tensors = norm_tensors(2, 5, 3, 45)
    expected = norm(*tensors)
    views = [x if x.dim() == 1 else x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors]
    assert not views[0].is_contiguous()
    for actual, plain in zip(norm(*views), expected, strict=True):
        assert torch.equal(actual, plain)
    x, weight, bias, grad, _ = tensors
    ones = torch.ones((), device=DEVICE).expand(grad.shape)
    for actual, plain in zip(
        norm(x, weight, bias, ones, None), norm(x, weight, bias, ones.contiguous(), None), strict=True
    ):
        assert torch.equal(actual, plain)


def test_norm_gives_the_same_bits_again_and_whatever_else_is_in_the_batch():
    x, weight, bias, grad, skip = norm_tensors(61, 96)
    first, again = norm(x, weight, bias, grad, skip), norm(x, weight, bias, grad, skip)
    assert all(map(torch.equal, first, again))
    alone = norm(x[20:], weight, bias, grad[20:], skip[20:])
    for of_all, of_some in zip(first[:3], alone[:3], strict=True):
        assert torch.equal(of_all[20:], of_some)


def test_norm_does_not_compute_its_output_again_unless_asked():
    tensors = norm_tensors(7, 16)
    (_, none, *grads), (_, _, *expected) = norm(*tensors, again=False), norm(*tensors)
    assert none is None
    assert all(map(torch.equal, grads, expected))


# --------------------------------------------------------------------------------------------------------------------
# GELU


def exact_gelu(grad, x, approximate):
    leaf = x.double().requires_grad_()
    y = F.gelu(leaf, approximate=approximate)
    (grad_x,) = torch.autograd.grad(y, leaf, grad.double())
    return y.detach(), grad_x, grad_x.flatten(0, -2).sum(0)


@pytest.mark.parametrize('dtype', ROUNDING)
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@pytest.mark.parametrize('shape', [(2, 5, 7, 130), (1, 16), (3, 1), (0, 5, 9)])
def test_gelu(shape, approximate, dtype):
    x, grad = 3 * random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1)
    expected = exact_gelu(grad, x, approximate)
    grad_x = grad.clone()
    y, total = gelu_gpu.gelu_backward_sum_(grad_x, x, approximate)
    assert total.dtype == single
    assert_close((y, grad_x), expected[:2])
    assert_close([total], expected[2:], allowed=5e-6)
    other = grad.clone()
    none, again = gelu_gpu.gelu_backward_sum_(other, x, approximate, again=False)
    assert none is None
    assert torch.equal(other, grad_x)
    assert torch.equal(again, total)


@pytest.mark.parametrize('approximate', ['none', 'tanh'])
def test_gelu_far_from_zero(approximate):
    x = torch.tensor([[-6e4, -100.0, -12.0, -5.0, -0.0, 0.0, 5.0, 12.0, 100.0, 6e4]], device=DEVICE)
    grad = torch.ones_like(x)
    y, _ = gelu_gpu.gelu_backward_sum_(grad, x, approximate)
    expected = exact_gelu(torch.ones_like(x), x, approximate)
    torch.testing.assert_close(y.double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), expected[1], rtol=1e-6, atol=1e-6)


# --------------------------------------------------------------------------------------------------------------------
# In a block


@pytest.fixture
def by_kernel(monkeypatch):
    """Norms and GELUs take the kernels, on the CPU in the interpreter; returns how often they did."""
    calls = {'forward': 0, 'backward': 0, 'gelu': 0}
    launch = gpu.launch

    def counted(kernel, grid, tensors, *others):
        calls['forward' if len(tensors) == 4 else 'backward'] += 1
        launch(kernel, grid, tensors, *others)

    def counted_gelu(*args):
        calls['gelu'] += 1
        launch(*args)

    monkeypatch.setattr(gpu, 'launch', counted)
    monkeypatch.setattr(gelu_gpu, 'launch', counted_gelu)
    monkeypatch.setattr(fused, 'has_norm_kernel', lambda *args: True)
    monkeypatch.setattr(importlib.import_module('mmext_backbones.ops.recompute'), 'runs_as_kernel', lambda *args: True)
    monkeypatch.setattr(norm_gelu, 'runs_as_kernel', lambda *args: True)
    return calls


C = 32


def with_gradients(block, x, dtype=None):
    """Output and gradients, under autocast to a type."""
    block.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(0)
    with torch.autocast(DEVICE, dtype or bfloat, enabled=dtype is not None):
        out = block(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=DEVICE).view(out.shape))
    return [out.detach(), x.grad, *(p.grad for p in block.parameters())]


def blocks(build):
    """A block, and a copy of it that calls its modules."""
    torch.manual_seed(0)
    block = randomize(build()).to(DEVICE)
    plain = copy.deepcopy(block)
    for module in plain.modules():
        module.register_forward_hook(lambda *_: None)
    return block, plain


BLOCKS = {  # how often the kernels run in a training step
    'block': (lambda: TransformerBlock(WindowAttention(C, 2), C), (2, 2, 1)),
    'stochastic depth': (lambda: TransformerBlock(WindowAttention(C, 2), C, drop_path_rate=0.5), (2, 2, 1)),
    'tanh': (lambda: TransformerBlock(nn.Identity(), C, mlp=Mlp(C, gelu='tanh')), (1, 1, 1)),
    'lstm': (lambda: TransformerBlock(BiLSTM2D(C, 8), C), (2, 2, 1)),
    'patch merging': (lambda: PatchMerging(C), (1, 1, 0)),
}


@pytest.mark.parametrize('recompute', [True, False])
@pytest.mark.parametrize('name', BLOCKS)
def test_a_block_agrees_with_its_modules(name, recompute, by_kernel):
    build, numbers = BLOCKS[name]
    block, plain = blocks(build)
    x = random(3, 5, 6, C).transpose(1, 2)
    expected = with_gradients(plain, x)
    with fused.recomputing(recompute):
        actual = with_gradients(block, x)
    assert tuple(by_kernel.values()) == numbers
    assert_close(actual, expected, allowed=2e-5)
    with torch.no_grad():
        block.eval(), plain.eval()
        assert_close([block(x)], [plain(x)], allowed=1e-5)
    assert by_kernel['backward'] == numbers[1]


@pytest.mark.parametrize('dtype', [bfloat, pytest.param(half, marks=pytest.mark.slow)])
def test_a_block_under_autocast(dtype, by_kernel):
    block, plain = blocks(BLOCKS['block'][0])
    x = random(2, 7, 7, C)
    exact = with_gradients(copy.deepcopy(plain).double(), x.double())
    called = with_gradients(plain, x, dtype)
    results = []
    for recompute in (True, False):
        with fused.recomputing(recompute):
            results.append(with_gradients(block, x, dtype))
    names = ['out', 'x', *(name for name, _ in block.named_parameters())]
    differ = {name for name, *both in zip(names, *results, strict=True) if not torch.equal(*both)}
    assert differ <= {'mlp.fc2.weight'}  # whose GELU is PyTorch's, or of the kernel; norms again are the same bits
    assert [a.dtype for a in results[0]] == [b.dtype for b in called]
    for ours, theirs, true in zip(results[0], called, exact, strict=True):
        # what autocast makes of the modules, or as good; the interpreter cuts bfloat16 off
        assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + 0.03 * true.abs().max()


def test_frozen_weights_get_no_gradient_and_the_others_the_same(by_kernel):
    block, _ = blocks(BLOCKS['block'][0])
    x = random(1, 7, 7, C)
    names = [name for name, _ in block.named_parameters()]
    expected = dict(zip(names, with_gradients(block, x)[2:], strict=True))
    for trained in ('norm2.weight', 'mlp.fc1.bias', 'attn.qkv.weight'):
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(name == trained)
        block.zero_grad(set_to_none=True)
        out = block(x)
        out.backward(torch.linspace(-1, 1, out.numel(), device=DEVICE).view(out.shape))
        found = {name: p.grad for name, p in block.named_parameters() if p.grad is not None}
        assert list(found) == [trained]
        assert torch.equal(found[trained], expected[trained])


@pytest.mark.parametrize('recompute', [True, False])
def test_a_second_derivative_is_refused(recompute, by_kernel):
    block, _ = blocks(BLOCKS['tanh'][0])
    x = random(1, 3, 3, C).requires_grad_()
    with fused.recomputing(recompute), pytest.raises(RuntimeError, match='MMEXT_BACKEND=reference'):
        torch.autograd.grad(block(x).sum(), x, create_graph=True)


def test_recomputation_keeps_less(by_kernel):
    block, _ = blocks(BLOCKS['tanh'][0])
    x = random(1, 16, 16, C).requires_grad_()

    def kept(recompute):
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with fused.recomputing(recompute), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = block(x)
        parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
        return sum(n for key, n in storages.items() if key not in parameters) / (4 * x.numel()), out

    assert kept(True)[0] == pytest.approx(1 + 1 + 4, abs=0.1)  # x, x plus its mixture, the hidden map
    assert kept(False)[0] == pytest.approx(1 + 1 + 4 + 1 + 4, abs=0.1)  # and what norm and GELU give


if not HERE:
    for _name in [name for name in globals() if name.startswith('test_')]:
        del globals()[_name]  # run by the next one

    @needs_interpreter
    @pytest.mark.parametrize('which', ['not slow', pytest.param('slow', marks=pytest.mark.slow)])
    def test_in_the_interpreter(which):
        pytest.importorskip('triton')
        command = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-m', which, __file__]
        environment = os.environ | {'TRITON_INTERPRET': '1'}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stdout + done.stderr
