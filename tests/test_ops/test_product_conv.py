"""The grouped convolution of a product against torch's."""

import copy

import pytest
import torch

from mmext_backbones.layers import ELSAAttention
from mmext_backbones.ops import product_conv
from mmext_backbones.ops.product_conv import cpu
from tests.conftest import randomize

NO_COMPILER = cpu.why_not()
needs_compiler = pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
# of q @ k summed over 49 taps of 8 channels; a weight's gradient sums over all tokens
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def random_inputs(B, H, W, C, group, dtype=torch.float64, kernel_size=7):
    """The fused projection whose first channels are q and k, weight and bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = (B, H, W, 2 * C + 3), (C, group, kernel_size, kernel_size), (C,)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes]


def results(inputs, backend, bias=True):
    """Output and gradients of the fused projection, weight and bias."""
    qkv, *params = leaves = [x.detach().clone().requires_grad_() for x in inputs]
    C = len(params[0])
    q, k = qkv[..., :C], qkv[..., C : 2 * C]
    out = product_conv(q, k, params[0], params[1] if bias else None, backend=backend)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_agree(actual, expected, tolerance):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@needs_compiler
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('group', [4, 8])
@pytest.mark.parametrize(
    ('B', 'H', 'W', 'C'),
    [
        (1, 1, 1, 8),
        (2, 2, 9, 24),
        (1, 9, 2, 40),
        (2, 31, 45, 88),  # a block of channels that is half full
        (3, 65, 14, 16),  # two parts of a map, of an odd and an even number of rows
        (20, 64, 3, 8),  # more parts than chunks
    ],
)
def test_agrees_with_torch(B, H, W, C, group, dtype):
    inputs = random_inputs(B, H, W, C, group, dtype)
    expected = results([x.double() for x in inputs], 'torch')
    assert len(expected) == 4
    assert_agree([x.double() for x in results(inputs, 'compiled')], expected, TOLERANCES[dtype])


@needs_compiler
def test_without_bias():
    inputs = random_inputs(1, 5, 8, 8, 4)
    actual, expected = results(inputs, 'compiled', bias=False), results(inputs, 'torch', bias=False)
    assert len(expected) == 3
    assert_agree(actual, expected, 1e-12)


@needs_compiler
@pytest.mark.parametrize('group', [4, 8])
def test_any_strides(group):
    """Channels before tokens, an expanded gradient, and weights channels last."""
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, 8, 6, 5, dtype=torch.float64, generator=generator).permute(0, 2, 3, 1) for _ in range(2))
    weight = torch.randn(8, group, 7, 7, dtype=torch.float64, generator=generator)
    found = []
    for backend in ('compiled', 'torch'):
        leaves = [x.detach().requires_grad_() for x in (q, k, weight.contiguous(memory_format=torch.channels_last))]
        product_conv(*leaves, backend=backend).sum().backward()
        found.append([x.grad for x in leaves])
    assert_agree(*found, 1e-12)


@needs_compiler
def test_keeps_nothing_but_its_inputs():
    qkv, weight, bias = random_inputs(1, 16, 16, 32, 4, torch.float32)
    qkv.requires_grad_()
    kept = set()

    def pack(x):
        kept.add(x.untyped_storage().data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        product_conv(qkv[..., :32], qkv[..., 32:64], weight, bias, backend='compiled')
    assert kept <= {qkv.untyped_storage().data_ptr(), weight.untyped_storage().data_ptr()}


@needs_compiler
@pytest.mark.parametrize('group_width', [4, 8])
def test_elsa_attention_agrees_with_its_modules(group_width):
    torch.manual_seed(0)
    attention = randomize(ELSAAttention(48, 3, group_width=group_width)).double()
    plain = copy.deepcopy(attention)
    called = []
    plain.filter_conv.register_forward_hook(lambda *_: called.append(1))
    x = torch.randn(2, 9, 11, 48, dtype=torch.float64)
    found = []
    for module in (attention, plain):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.square().sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad for p in module.parameters())])
    assert called  # the hook, so the module ran
    assert 'ProductConvCPU' in graph_of(attention(x)) - graph_of(plain(x))
    assert_agree(*found, 1e-11)


def graph_of(out):
    """Names of the nodes of autograd behind a tensor."""
    names, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(node.name().removesuffix('Backward'))
        nodes += [following for following, _ in node.next_functions if following is not None]
    return names


def test_elsa_attention_computes_as_torch_where_the_kernel_cannot():
    """Under autocast, in bfloat16, on the meta device and with other groups or taps."""
    x = torch.randn(1, 6, 7, 24)
    for options, dtype, device in (
        ({}, torch.bfloat16, 'cpu'),
        ({}, torch.float32, 'meta'),
        ({'group_width': 2}, torch.float32, 'cpu'),
        ({'kernel_size': 5}, torch.float32, 'cpu'),
    ):
        attention = ELSAAttention(24, 3, **options).to(device, dtype)
        names = graph_of(attention(x.to(device, dtype)))
        assert 'Convolution' in {name.removesuffix('Backward0') for name in names}
    attention = ELSAAttention(24, 3)
    with torch.autocast('cpu', torch.bfloat16):
        filters = attention.filters(x[..., :16], x[..., :16])
        expected = attention.filter_conv((x[..., :16] * x[..., :16]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert filters.dtype == torch.bfloat16
    torch.testing.assert_close(filters, expected, rtol=0, atol=0)


def test_the_state_dict_is_that_of_a_convolution():
    attention = ELSAAttention(96, 3, group_width=4)
    shapes = {key: tuple(x.shape) for key, x in attention.state_dict().items() if key.startswith('filter_conv')}
    assert shapes == {'filter_conv.weight': (64, 4, 7, 7), 'filter_conv.bias': (64,)}


@pytest.mark.parametrize(
    ('changes', 'error', 'message'),
    [
        ({'backend': 'triton'}, ValueError, "backend='triton'"),
        ({'k': torch.zeros(1, 5, 6, 8)}, ValueError, r'q and k have shapes \(1, 5, 5, 8\) and \(1, 5, 6, 8\)'),
        ({'weight': torch.zeros(8, 3, 7, 7)}, ValueError, r'weight has shape \(8, 3, 7, 7\)'),
        ({'weight': torch.zeros(8, 4, 6, 6)}, ValueError, r'weight has shape \(8, 4, 6, 6\)'),
        ({'bias': torch.zeros(4)}, ValueError, r'bias has shape \(4,\)'),
        ({'weight': torch.zeros(8, 2, 7, 7)}, RuntimeError, 'groups of 4 or 8'),
        ({'weight': torch.zeros(8, 4, 5, 5)}, RuntimeError, '7 x 7 taps'),
        ({'weight': torch.zeros(8, 4, 7, 7).double()}, RuntimeError, 'torch.float32, torch.float64'),
        ({'weight': torch.zeros(8, 4, 7, 7, device='meta')}, ValueError, 'q is on cpu and weight on meta'),
    ],
)
def test_bad_arguments_are_named(changes, error, message):
    maps = {name: torch.zeros(1, 5, 5, 8) for name in ('q', 'k')}
    arguments = {**maps, 'weight': torch.zeros(8, 4, 7, 7), 'bias': torch.zeros(8), 'backend': 'compiled'}
    with pytest.raises(error, match=message):
        product_conv(**(arguments | changes))
