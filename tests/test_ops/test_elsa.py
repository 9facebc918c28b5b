"""The ELSA operator against the authors' own outputs and the readable reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dev.fake_cuda import fake_cuda
from mmext_backbones.layers import ELSAAttention
from mmext_backbones.ops import elsa
from mmext_backbones.ops.elsa import cpu, taps
from tests.torch_features import CountOperations, needs_compile, needs_fake_backward

VECTORS = np.load(Path(__file__).parents[1] / 'data' / 'elsa_op.npz')
CASES = ('elsa_swin', 'general', 'dilated')
NO_COMPILER = cpu.why_not()
needs_compiler = pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
BACKENDS = [pytest.param('cpu', marks=needs_compiler), 'torch', 'export', 'reference']


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


def wide_or_not():
    """Parameters (size, channels of a head, form); of the kernel two whole blocks of channels too, and with a rest."""
    for size in ((1, 1), (2, 9), (31, 45)):
        yield from (pytest.param(size, head_dim, 'cpu', marks=needs_compiler) for head_dim in (4, 64, 70))
        for backend in ('torch', 'export'):
            yield size, 4, backend
            yield pytest.param(size, 70, backend, marks=pytest.mark.slow)


@pytest.mark.parametrize(('size', 'head_dim', 'backend'), wide_or_not())
@pytest.mark.parametrize(('kernel_size', 'dilation', 'lam'), [(7, 1, 0), (7, 2, 0), (3, 1, 0), (5, 1, 1), (3, 3, 1)])
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


@needs_compiler
@pytest.mark.parametrize('shape', [(1, 6, 4, 1), (1, 6, 1, 5), (1, 6, 1, 1), (2, 6, 3, 1)])
def test_axes_of_size_one_may_have_any_stride(shape):
    B, C, H, W = shape
    v = torch.randn(B, W, H, C).transpose(1, 2).permute(0, 3, 1, 2)
    logits, add = torch.randn(B, 18, H, W), torch.randn(C, 3, 3)
    options = {'ghost_add': add, 'num_heads': 2, 'kernel_size': 3}
    torch.testing.assert_close(elsa(v, logits, backend='cpu', **options), elsa(v, logits, backend='torch', **options))


@needs_compile
@needs_compiler
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


@pytest.mark.parametrize('options', [{'lam': 1}, {'dilation': 2}])
def test_kernels_are_without_static_factors_and_dilation_and_auto_takes_the_taps(options):
    v, logits, mul, add = random_inputs(1, 2, 3, 4, 5, 3)
    arguments = {'num_heads': 2, 'kernel_size': 3, **options}
    for backend in ('cpu', 'gpu'):
        with pytest.raises(RuntimeError, match=f"backend='{backend}': it has no static factors"):
            elsa(v, logits, mul, add, backend=backend, **arguments)
    assert torch.equal(elsa(v, logits, mul, add, **arguments), elsa(v, logits, mul, add, backend='torch', **arguments))
    shapes = [x.detach().to('meta') for x in (v, logits, mul, add)]
    assert elsa(*shapes, **arguments).shape == v.shape


@needs_fake_backward
@pytest.mark.parametrize('lam', [0, 1])
def test_off_the_cpu_the_taps_take_the_whole_map_at_once(lam):
    """Each operation is a launch there: their number must not grow with the map."""
    counts = []
    for size in ((8, 12), (200, 336)):
        with fake_cuda(), CountOperations() as operations:
            v, logits = torch.empty(2, 96, *size, device='cuda'), torch.empty(2, 147, *size, device='cuda')
            ghosts = [torch.empty(96, 7, 7, device='cuda') for _ in range(2)]
            leaves = [x.requires_grad_() for x in (v, logits, *ghosts)]
            out = elsa(*leaves, num_heads=3, kernel_size=7, lam=lam, backend='torch')
            out.backward(torch.empty_like(out))
        counts.append(operations.count)
    small, large = counts
    assert small == large < 60 * 49  # views among them
