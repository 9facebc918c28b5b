"""The ELSA operator against the authors' own outputs, the readable reference, and finite differences."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmext_backbones.layers import ELSAAttention
from mmext_backbones.ops import elsa
from mmext_backbones.ops.elsa import cpu, taps
from tests.torch_features import needs_compile

VECTORS = np.load(Path(__file__).parents[1] / 'data' / 'elsa_op.npz')
CASES = ('elsa_swin', 'general', 'dilated')
NO_COMPILER = cpu.why_not()
BACKENDS = [
    pytest.param('cpu', marks=pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')),
    'torch',
    'export',
    'reference',
]


def random_inputs(B, heads, head_dim, H, W, k, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()

    C = heads * head_dim
    return leaf(B, C, H, W), leaf(B, heads * k * k, H, W), leaf(C, k, k), leaf(C, k, k)


def of_no_network(backend, lam=0, dilation=1):
    """The kernels have what networks use alone; that they say so is `test_kernels_are_without_...`."""
    if backend == 'cpu' and (lam or dilation != 1):
        pytest.skip('the kernel has no static factors and no dilation')


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('case', CASES)
def test_agrees_with_the_authors_in_output_and_all_gradients(case, backend):
    data = {key.split('/')[1]: VECTORS[key] for key in VECTORS.files if key.startswith(case + '/')}
    B, heads, head_dim, k = (int(data[name]) for name in ('batch', 'heads', 'head_dim', 'kernel_size'))
    H, W = data['v'].shape[-2:]
    v = torch.from_numpy(data['v']).view(B, heads * head_dim, H, W).requires_grad_()
    logits = torch.from_numpy(data['logits']).view(B, heads * k * k, H, W).requires_grad_()
    mul = torch.from_numpy(data['ghost_mul']).requires_grad_()
    add = torch.from_numpy(data['ghost_add']).requires_grad_()

    lam, gamma = float(data['lam']), float(data['gamma'])
    of_no_network(backend, lam, int(data['dilation']))
    out = elsa(
        v,
        logits,
        mul,
        add,
        num_heads=heads,
        kernel_size=k,
        dilation=int(data['dilation']),
        lam=lam,
        gamma=gamma,
        backend=backend,
    )
    out.backward(torch.from_numpy(data['grad_out']).view_as(out))

    pairs = {'out': out.detach(), 'grad_v': v.grad, 'grad_logits': logits.grad, 'grad_ghost_add': add.grad}
    if lam:
        pairs['grad_ghost_mul'] = mul.grad
    else:
        assert mul.grad is None
    for name, actual in pairs.items():
        expected = torch.from_numpy(data[name]).view_as(actual)
        assert relative_error(actual, expected) < 1e-9, name


@pytest.mark.parametrize(('lam', 'gamma'), [(0, 1), (1, 1), (2, 0.5), (1, 0), (0, 0)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_gradcheck(lam, gamma, backend):
    of_no_network(backend, lam)
    v, logits, mul, add = random_inputs(2, 2, 3, 4, 5, 3)

    def run(v, logits, mul, add):
        return elsa(v, logits, mul, add, num_heads=2, kernel_size=3, lam=lam, gamma=gamma, backend=backend)

    assert torch.autograd.gradcheck(run, (v, logits, mul, add))


@pytest.mark.parametrize('size', [(1, 1), (2, 9), (31, 45)])
@pytest.mark.parametrize(('kernel_size', 'dilation', 'lam'), [(7, 1, 0), (7, 2, 0), (3, 1, 0), (5, 1, 1), (3, 3, 1)])
@pytest.mark.parametrize('head_dim', [4, 64, 70])  # two whole blocks of the compiled kernel's channels, and with a rest
@pytest.mark.parametrize('backend', BACKENDS[:3])
def test_agrees_with_the_reference_on_odd_sizes_and_strided_inputs(
    size, kernel_size, dilation, lam, head_dim, backend, monkeypatch
):
    of_no_network(backend, lam, dilation)
    monkeypatch.setattr(taps, 'BAND_ELEMENTS', 500)  # several bands, the last one shorter
    inputs = random_inputs(2, 3, head_dim, *size, kernel_size)
    results = []
    for each in (backend, 'reference'):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        v, logits = (x.contiguous(memory_format=torch.channels_last) for x in leaves[:2])
        v = torch.cat([v, v], dim=1)[:, : v.shape[1]]  # a slice of a wider tensor, as of the fused projection
        out = elsa(
            v, logits, *leaves[2:], num_heads=3, kernel_size=kernel_size, dilation=dilation, lam=lam, backend=each
        )
        out.square().sum().backward()
        results.append([out, *(x.grad for x in leaves if x.grad is not None)])
    assert len(results[0]) == len(results[1]) == (5 if lam else 4)
    for actual, reference in zip(*results, strict=True):
        assert relative_error(actual, reference) < 1e-12


@pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
def test_the_compiled_kernel_gives_the_same_bits_on_any_number_of_threads():
    inputs = random_inputs(1, 3, 32, 37, 21, 7, torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            leaves = [x.detach().clone().requires_grad_() for x in inputs]
            out = elsa(*leaves, num_heads=3, kernel_size=7, backend='cpu')
            out.square().sum().backward()
            results.append([out, leaves[3].grad])
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        torch.testing.assert_close(one, three, rtol=0, atol=0)


@pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
@pytest.mark.parametrize('shape', [(1, 6, 4, 1), (1, 6, 1, 5), (1, 6, 1, 1), (2, 6, 3, 1)])
def test_axes_of_size_one_may_have_any_stride(shape):
    B, C, H, W = shape
    v = torch.randn(B, W, H, C).transpose(1, 2).permute(0, 3, 1, 2)
    logits, add = torch.randn(B, 18, H, W), torch.randn(C, 3, 3)
    options = {'ghost_add': add, 'num_heads': 2, 'kernel_size': 3}
    torch.testing.assert_close(elsa(v, logits, backend='cpu', **options), elsa(v, logits, backend='torch', **options))


FALLBACK = """
import torch
from mmext_backbones.ops import elsa
v, logits, add = torch.randn(1, 6, 5, 5), torch.randn(1, 18, 5, 5), torch.randn(6, 3, 3)
options = dict(ghost_add=add, num_heads=2, kernel_size=3)
assert torch.equal(elsa(v, logits, **options), elsa(v, logits, backend='taps', **options))
try:
    elsa(v, logits, backend='compiled', **options)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ('compiler', 'message'),
    [
        ('no-such-compiler', "no C compiler: 'no-such-compiler'"),
        ('false', "backend='compiled': false --version ... failed"),
    ],
)
def test_without_a_working_compiler_auto_takes_the_taps_and_compiled_says_why(compiler, message, tmp_path):
    environment = os.environ | {'CC': compiler, 'XDG_CACHE_HOME': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', FALLBACK], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert message in done.stdout


def test_the_environment_names_the_backend(monkeypatch):
    arguments = (torch.zeros(1, 8, 6, 6), torch.zeros(1, 18, 6, 6), None, torch.zeros(8, 3, 3))
    monkeypatch.setenv('MMEXT_ELSA_BACKEND', 'fastest')
    with pytest.raises(ValueError, match="backend='fastest'"):
        elsa(*arguments, num_heads=2, kernel_size=3)
    elsa(*arguments, num_heads=2, kernel_size=3, backend='taps')  # an argument goes before it


@needs_compile
@pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
def test_torch_compile_sees_one_node():
    attention = ELSAAttention(24, 3)
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(attention, backend=record, dynamic=True)
    for H, W in ((8, 9), (11, 7)):
        x = torch.randn(1, H, W, 24)
        # compilers see torch's convolution of the filters, which sums in another order than ours (ops.product_conv)
        torch.testing.assert_close(compiled(x), attention(x))
    assert len(graphs) == 1  # no break, no compilation for the second size


@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_half_precision_accumulates_in_float32(dtype, tolerance):
    # The tolerance is one rounding of inputs and output (2^-8 and 2^-11), not that of 49 rounded additions.
    v, logits, _, add = random_inputs(1, 2, 4, 9, 8, 7, dtype)
    out = elsa(v, logits, ghost_add=add, num_heads=2, kernel_size=7, gamma=0)
    exact = elsa(v.double(), logits.double(), ghost_add=add.double(), num_heads=2, kernel_size=7, gamma=0)
    assert out.dtype == dtype
    assert relative_error(out.double(), exact) < tolerance
    out.float().sum().backward()
    assert v.grad.dtype == logits.grad.dtype == dtype


def test_autocast_does_not_lower_the_sums():
    v, logits, _, add = random_inputs(1, 2, 4, 9, 8, 7, torch.float32)
    results = []
    for enabled in (False, True):
        leaves = [x.detach().clone().requires_grad_() for x in (v, logits, add)]
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out = elsa(leaves[0], leaves[1], ghost_add=leaves[2], num_heads=2, kernel_size=7)
            out.sum().backward()
        results.append([out, *(x.grad for x in leaves)])
    for lowered, exact in zip(*results, strict=True):
        torch.testing.assert_close(lowered, exact, rtol=0, atol=0)


def test_saves_nothing_but_the_inputs_of_its_two_halves():
    v, logits, _, add = random_inputs(1, 3, 8, 16, 16, 7, torch.float32)
    saved = {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        elsa(v, logits, ghost_add=add, num_heads=3, kernel_size=7)
    # values, softmaxed logits and the ghost head; the unfolded form keeps 49 times the values more
    assert sum(saved.values()) <= (v.nbytes + logits.nbytes + add.nbytes) * 1.01


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'backend': 'cuda'}, "backend='cuda'"),
        ({'kernel_size': 4}, 'kernel_size=4'),
        ({'dilation': 0}, 'dilation=0'),
        ({'num_heads': 5}, 'num_heads=5'),
        ({'logits': torch.zeros(1, 9, 6, 6)}, r'logits have shape \(1, 9, 6, 6\): expected \(1, 18, 6, 6\)'),
        ({'ghost_add': None}, 'ghost_add has shape None'),
        ({'lam': 1}, 'ghost_mul has shape None'),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {
        'v': torch.zeros(1, 8, 6, 6),
        'logits': torch.zeros(1, 18, 6, 6),
        'ghost_add': torch.zeros(8, 3, 3),
        'num_heads': 2,
        'kernel_size': 3,
    }
    with pytest.raises(ValueError, match=message):
        elsa(**(arguments | changes))


def test_the_node_is_for_recorded_networks():
    v, logits, _, add = random_inputs(1, 1, 2, 3, 3, 3)
    with pytest.raises(RuntimeError, match="backend='operator': it is for recorded networks"):
        elsa(v, logits, ghost_add=add, num_heads=1, kernel_size=3, backend='operator')


@pytest.mark.parametrize('options', [{'lam': 1}, {'dilation': 2}])
def test_kernels_are_without_static_factors_and_dilation_and_auto_takes_the_taps(options):
    v, logits, mul, add = random_inputs(1, 2, 3, 4, 5, 3)
    arguments = {'num_heads': 2, 'kernel_size': 3, **options}
    for backend in ('cpu', 'gpu', 'operator'):
        with pytest.raises(RuntimeError, match=f"backend='{backend}': it has no static factors"):
            elsa(v, logits, mul, add, backend=backend, **arguments)
    assert torch.equal(elsa(v, logits, mul, add, **arguments), elsa(v, logits, mul, add, backend='torch', **arguments))
    shapes = [x.detach().to('meta') for x in (v, logits, mul, add)]
    assert elsa(*shapes, **arguments).shape == v.shape
