"""The Triton kernels of the ELSA operator against the readable reference in float64.

They run on a GPU where there is one, else in Triton's interpreter. That must be asked for before Triton is imported:
in a process that has not, one test runs this file in another that has.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmext_backbones.layers import ELSAAttention
from mmext_backbones.ops import elsa, gpu_support
from mmext_backbones.ops.elsa import gpu
from tests.torch_features import needs_fake_cuda, needs_interpreter, triton_version

INTERPRETER = os.environ.get('TRITON_INTERPRET') == '1'
DEVICE = 'cuda' if torch.cuda.is_available() and not INTERPRETER else 'cpu'
HERE = INTERPRETER or DEVICE == 'cuda'
NO_TRITON = gpu.why_not(torch.device(DEVICE), torch.float32) if HERE else None
pytestmark = pytest.mark.skipif(NO_TRITON is not None, reason=f'triton: {NO_TRITON}')
NAMES = ('out', 'grad_v', 'grad_logits', 'grad_ghost_add')


@pytest.fixture(autouse=True)
def _few_chunks(monkeypatch):
    monkeypatch.setattr(gpu, 'CHUNKS', 3)  # so that one has several tiles and another fewer, on small maps


def random_inputs(B, num_heads, head_dim, H, W, k, dtype=torch.float32):
    """v, logits, ghost_add and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    C = num_heads * head_dim
    shapes = (B, C, H, W), (B, num_heads * k * k, H, W), (C, k, k), (B, C, H, W)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def run(inputs, num_heads, kernel_size, backend='gpu', **options):
    """The output and the gradients of all inputs but the last, which is that of the output; None where unused."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    out = elsa(
        *leaves[:2], ghost_add=leaves[2], num_heads=num_heads, kernel_size=kernel_size, backend=backend, **options
    )
    out.backward(inputs[3])
    return [out.detach(), *(x.grad for x in leaves)]


def assert_agree(actual, expected, tolerance):
    """Within `tolerance` of the largest element."""
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert (a is None) == (e is None), name
        if a is not None:
            torch.testing.assert_close(a.double(), e, rtol=0, atol=tolerance * e.abs().max().item(), msg=name)


# batch, heads, channels a head, height and width, kernel, gamma
CASES = {
    'published': (1, 2, 4, 7, 9, 3, 1),
    'general': (2, 3, 4, 4, 5, 3, 0.5),
    'filters only': (1, 2, 4, 5, 7, 3, 0),
    'published sizes': (1, 1, 32, 5, 11, 7, 1),
    'map smaller than the kernel': (1, 2, 32, 2, 3, 7, 1),
    'one pixel': (2, 1, 4, 1, 1, 3, 1),
    'two blocks of channels': (1, 2, 40, 6, 5, 3, 1),
    'channels padded': (1, 3, 5, 5, 8, 3, 1),
    'taps padded': (1, 1, 4, 6, 5, 9, 1),
    'one tap': (1, 2, 4, 3, 4, 1, 1),
}


# the interpreter takes seconds a case of many taps
SLOW = ('published sizes', 'map smaller than the kernel', 'taps padded')


@pytest.mark.parametrize('case', [pytest.param(case, marks=pytest.mark.slow if case in SLOW else ()) for case in CASES])
def test_agrees_with_the_reference_in_output_and_all_gradients(case):
    B, num_heads, head_dim, H, W, k, gamma = CASES[case]
    inputs = random_inputs(B, num_heads, head_dim, H, W, k)
    options = {'num_heads': num_heads, 'kernel_size': k, 'gamma': gamma}
    actual = run(inputs, **options)
    expected = run([x.double() for x in inputs], backend='reference', **options)
    if k == 1:  # a filter of one tap is one, whatever its logit
        expected[2] = torch.zeros_like(expected[2])
    # float32: a few hundred sums' roundings of 2^-24, most of which cancel
    assert_agree(actual, expected, 2e-6)


@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    # One rounding of the results, 2^-8 and 2^-11, twice that where the interpreter cuts bfloat16 off. Sums in half
    # precision or rounded filters would be above: 49 taps, 50 pixels.
    [(torch.bfloat16, 2**-7), pytest.param(torch.float16, 2**-11, marks=pytest.mark.slow)],
)
def test_half_precision_is_summed_in_float32(dtype, tolerance):
    inputs = random_inputs(1, 1, 8, 5, 10, 7, dtype)
    actual = run(inputs, 1, 7)
    assert {x.dtype for x in actual} == {dtype}
    assert_agree(actual, run([x.double() for x in inputs], 1, 7, backend='reference'), tolerance * 1.01)


def test_large_logits_stay_finite():
    inputs = random_inputs(1, 2, 4, 4, 5, 3)
    inputs[1] *= 1000
    # exp(logit - lse) has the rounding of lse, 2^-24 of 3000
    assert_agree(run(inputs, 2, 3), run([x.double() for x in inputs], 2, 3, backend='reference'), 1e-3)


def embedded(x, pad):
    """`x` [B, C, H, W] amid NaN, as a view of a channels-last tensor that is wider by `pad` (C, H, W) at either end."""
    B, (c, h, w) = len(x), pad
    wide = x.new_full((B, x.shape[2] + 2 * h, x.shape[3] + 2 * w, x.shape[1] + 2 * c), torch.nan)
    view = wide[:, h : h + x.shape[2], w : w + x.shape[3], c : c + x.shape[1]].permute(0, 3, 1, 2)
    return view.copy_(x)


def test_views_give_the_same_bits_and_nothing_outside_them_is_read():
    inputs = random_inputs(1, 2, 4, 5, 9, 3)
    expected = run(inputs, 2, 3)
    views = [
        embedded(inputs[0], (4, 0, 0)),
        embedded(inputs[1], (5, 2, 1)),
        inputs[2],
        embedded(inputs[3], (2, 0, 3)),
    ]
    assert not any(views[i].permute(0, 2, 3, 1).is_contiguous() for i in (0, 1, 3))
    for name, actual, plain in zip(NAMES, run(views, 2, 3), expected, strict=True):
        torch.testing.assert_close(actual, plain, rtol=0, atol=0, msg=name)


def test_an_expanded_gradient():
    v, logits, add, grad = random_inputs(1, 2, 4, 4, 5, 3)
    expected = run([v, logits, add, torch.ones_like(grad)], 2, 3)
    v.requires_grad_()
    elsa(v, logits, ghost_add=add, num_heads=2, kernel_size=3, backend='gpu').sum().backward()
    torch.testing.assert_close(v.grad, expected[1], rtol=0, atol=0)


def test_the_same_bits_again_and_whatever_else_is_in_the_batch():
    inputs = random_inputs(2, 1, 4, 5, 9, 3)
    first, again = run(inputs, 1, 3), run(inputs, 1, 3)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    v, logits, add, grad = inputs
    alone = run([v[1:], logits[1:], add, grad[1:]], 1, 3)
    for a, b in zip(first[:3], alone[:3], strict=True):  # of the images; that of the static filters is a sum over all
        torch.testing.assert_close(a[1:], b, rtol=0, atol=0)


def test_computes_only_the_gradients_that_are_asked_for():
    inputs = random_inputs(1, 2, 4, 4, 5, 3)
    expected = run(inputs, 2, 3)
    for needed in range(3):
        leaves = [x.detach().requires_grad_(i == needed) for i, x in enumerate(inputs[:3])]
        elsa(*leaves[:2], ghost_add=leaves[2], num_heads=2, kernel_size=3, backend='gpu').backward(inputs[3])
        for i, leaf in enumerate(leaves):
            assert (leaf.grad is None) == (i != needed)
        torch.testing.assert_close(leaves[needed].grad, expected[1 + needed], rtol=0, atol=0)


def test_saves_its_inputs_and_one_number_a_pixel_and_head():
    v, logits, add, _ = random_inputs(1, 3, 8, 8, 8, 3)
    saved = {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    v.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        elsa(v, logits, ghost_add=add, num_heads=3, kernel_size=3, backend='gpu')
    assert sum(saved.values()) == v.nbytes + logits.nbytes + add.nbytes + 4 * 3 * 8 * 8


def test_autocast_takes_the_inputs_as_they_are():
    v, logits, add, grad = random_inputs(1, 2, 4, 4, 5, 3)
    inputs = v.bfloat16(), logits, add, grad.bfloat16()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        lowered = run(inputs, 2, 3)
    assert [x.dtype for x in lowered] == [torch.bfloat16, torch.bfloat16, *[torch.float32] * 2]
    for a, b in zip(lowered, run(inputs, 2, 3), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_and_checkpointed_networks_give_the_same_gradients():
    attention = ELSAAttention(12, 3, kernel_size=3).to(DEVICE)
    attention.backend = 'gpu'
    graphs = []

    def record(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(graph)
        return aot_eager(graph, inputs)

    def checkpointed(x):
        return torch.utils.checkpoint.checkpoint(attention, x, use_reentrant=False)

    x = torch.randn(1, 4, 5, 12, device=DEVICE)
    results = []
    for form in (attention, checkpointed, torch.compile(attention, backend=record)):
        attention.zero_grad()
        form(x).square().sum().backward()
        results.append([p.grad.clone() for p in attention.parameters()])
    assert len(graphs) == 1  # no break
    for plain, *others in zip(*results, strict=True):
        for other in others:  # the products around the operator may be summed in another order
            torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


def test_float64_is_refused():
    inputs = [x.double() for x in random_inputs(1, 2, 4, 3, 3, 3)]
    with pytest.raises(RuntimeError, match=r"backend='gpu': it takes .* float32, not torch.float64"):
        run(inputs, 2, 3)


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

    def test_on_the_cpu_without_the_interpreter_it_says_so():
        pytest.importorskip('triton')
        message = 'it runs on GPUs, not on cpu' if triton_version() >= (3,) else 'Triton .* is too old'
        with pytest.raises(RuntimeError, match=f"backend='gpu': {message}"):
            run(random_inputs(1, 2, 4, 3, 3, 3), 2, 3)


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, 'triton', None)
    monkeypatch.setattr(gpu_support, 'no_triton', gpu_support.no_triton.__wrapped__)
    with pytest.raises(RuntimeError, match="backend='gpu': Triton cannot be imported"):
        run(random_inputs(1, 2, 4, 3, 3, 3), 2, 3)


@needs_fake_cuda
@pytest.mark.parametrize('reason', [None, 'no such thing here'])
def test_auto_on_cuda_takes_the_kernels_where_they_run_else_the_taps(reason, monkeypatch):
    class Record(TorchDispatchMode):
        called = set()  # noqa: RUF012

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.called.add(function.name())
            return function(*args, **(kwargs or {}))

    for name in ('MMEXT_BACKEND', 'MMEXT_ELSA_BACKEND'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(elsa.__globals__, 'gpu_why_not', lambda device, dtype: reason)
    with FakeTensorMode():
        v, logits, add = (torch.empty(s, device='cuda') for s in ((1, 8, 6, 6), (1, 18, 6, 6), (8, 3, 3)))
        with Record() as record:
            elsa(v, logits, ghost_add=add, num_heads=2, kernel_size=3)
    assert ('mmext_backbones::elsa_softmax' in record.called) == (reason is None)
