"""The Triton kernels of window and grid attention against the formula in float64.

The compiler has its say in `test_dev/test_gpu_kernels.py`.

Where there is no GPU the kernels run in Triton's interpreter. That has to be chosen before Triton is imported, which
other tests do too: so this file, run as a program, computes all cases in a process of its own.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from mmext_backbones.ops import grid_merge, grid_partition, window_merge, window_partition
from mmext_backbones.ops.window_attention import gpu
from mmext_backbones.ops.window_attention.gpu import why_not
from mmext_backbones.ops.window_attention.gpu import window_attention_gpu as attention
from tests.torch_features import needs_interpreter, triton_version

pytest.importorskip('triton', reason='Triton is not installed')

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
NAMES = ('out', 'grad_qkv', 'grad_bias', 'grad_padding')
# Relative to the largest element. float32: sums of some hundred products. Half precision: attn and d_logits are rounded
# to it before they are multiplied, and so are the results; each costs half a unit in the last place, 2^-9 and 2^-12.
# The interpreter cuts bfloat16 off instead of rounding it: a whole unit.
UNIT = 2**-9 if DEVICE.type == 'cuda' else 2**-8
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 4 * UNIT, torch.float16: 4 * 2**-12}


@dataclass(frozen=True)
class Case:
    size: tuple[int, int] = (9, 11)  # of the map
    window: tuple[int, int] = (7, 7)
    shift: int = 0
    grid: bool = False
    padded: bool = True  # with a vector for the padding
    batch: int = 1
    heads: int = 2
    head_dim: int = 24
    dtype: torch.dtype = torch.float32
    layout: str = 'dense'


CASES = {
    'window': Case(head_dim=32),
    'shifted': Case(shift=3),
    'smaller than a window': Case(size=(5, 4), shift=3),
    'one row': Case(size=(1, 10), window=(2, 4), shift=1, batch=2),
    'whole': Case(size=(8, 12), window=(4, 4), shift=2),
    'window, padding hidden': Case(padded=False, head_dim=32),
    'shifted, padding hidden': Case(size=(6, 7), window=(4, 3), shift=1, padded=False),
    'grid': Case(grid=True, padded=False, head_dim=32),
    'grid, smaller than the window': Case(size=(5, 9), grid=True, padded=False),
    'grid, with a vector': Case(size=(7, 6), window=(3, 5), grid=True),
    'oblong, runs of windows': Case(size=(7, 9), window=(3, 5), shift=2, batch=3, heads=1),
    'blocks of queries': Case(size=(12, 13), window=(12, 12), shift=6, heads=1, head_dim=16),
    'blocks of queries, padding hidden': Case(size=(10, 10), window=(9, 10), padded=False, head_dim=20),
    'strided': Case(size=(5, 6), window=(3, 3), shift=1, layout='strided', batch=2),
    'channels first': Case(size=(5, 6), window=(3, 3), layout='channels first', batch=2),
    'bfloat16': Case(shift=3, dtype=torch.bfloat16, head_dim=32),
    'bfloat16, blocks of queries': Case(size=(9, 9), window=(9, 9), heads=1, dtype=torch.bfloat16),
    'float16, grid': Case(grid=True, padded=False, dtype=torch.float16),
}


def inputs(case):
    """`qkv`, `bias`, `padding` and the gradient of the output; what is no map is float32 in every case."""
    generator = torch.Generator().manual_seed(0)
    C, N = case.heads * case.head_dim, case.window[0] * case.window[1]

    def random(*shape):
        return torch.randn(shape, generator=generator)

    (B, H, W), C3 = (case.batch, *case.size), 3 * C
    qkv = random(B, H, W, C3).to(case.dtype)
    if case.layout == 'strided':
        qkv = F.pad(qkv, (8, 3)).transpose(1, 2).contiguous().transpose(1, 2)[..., 8:-3]
        assert qkv.stride(1) < qkv.stride(2)
    elif case.layout == 'channels first':
        qkv = qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    bias, padding = random(case.heads, N, N), random(C3) if case.padded else None
    return qkv, bias, padding, random(B, H, W, C).to(case.dtype)


def regions(padded_size, case):
    """The paper's regions of the rolled map [1, Hp, Wp, 1]: what was never neighbours differs."""
    numbers = torch.zeros(1, *padded_size, 1)
    cuts = [(slice(-w), slice(-w, -case.shift), slice(-case.shift, None)) for w in case.window]
    for i, rows in enumerate(cuts[0]):
        for j, cols in enumerate(cuts[1]):
            numbers[:, rows, cols] = 3 * i + j
    return numbers


def reference(qkv, bias, padding, case):
    """The formula on maps that were padded, rolled and cut."""
    (H, W), (h, w), (B, heads, d) = case.size, case.window, (case.batch, case.heads, case.head_dim)
    inside = F.pad(torch.ones(1, H, W, 1), (0, 0, 0, -W % w, 0, -H % h)) > 0
    whole = F.pad(qkv, (0, 0, 0, -W % w, 0, -H % h))
    if padding is not None:
        whole = torch.where(inside, whole, padding)

    def cut(x):
        return (grid_partition(x, case.window) if case.grid else window_partition(x, case.window, case.shift))[0]

    q, k, v = cut(whole).view(B, -1, h * w, 3, heads, d).permute(3, 0, 1, 4, 2, 5)  # [B, windows, heads, N, d]
    logits = d**-0.5 * q @ k.mT + bias
    if case.shift:
        region = window_partition(regions(whole.shape[1:3], case), case.window)[0]  # [1, windows, N, 1]
        logits = logits - 100 * (region != region.mT).unsqueeze(2)
    if padding is None:
        logits = logits.masked_fill(~cut(inside.to(v.dtype)).bool().mT.unsqueeze(2), float('-inf'))
    out = (logits.softmax(-1) @ v).transpose(2, 3).flatten(3)
    size = tuple(whole.shape[1:3])
    merged = grid_merge(out, case.window, size) if case.grid else window_merge(out, case.window, size, case.shift)
    return merged[:, :H, :W]


def with_gradients(function, qkv, bias, padding, grad):
    leaves = [x.detach().requires_grad_() for x in (qkv, bias, padding) if x is not None]
    out = function(*leaves, *[None] * (3 - len(leaves)))
    gradients = torch.autograd.grad(out, leaves, grad)
    return dict(zip(NAMES, (out.detach(), *gradients), strict=False))


def kernel(case):
    def function(qkv, bias, padding):
        return attention(
            qkv,
            bias,
            num_heads=case.heads,
            window_size=case.window,
            scale=case.head_dim**-0.5,
            shift_size=case.shift,
            grid=case.grid,
            padding=padding,
        )

    return function


def on_device(case):
    return [None if x is None else x.to(DEVICE) for x in inputs(case)]


SMALL = CASES['oblong, runs of windows']
# every kind of group once, with the two tests of padding; the others are slow
SAMPLE = ('shifted', 'whole', 'grid', 'oblong, runs of windows', 'bfloat16, blocks of queries')


def main(path, which):
    """Compute all that the tests below compare, where it may be with Triton's interpreter."""
    # small maps in few runs: one for two heads, three for one head
    gpu.RUNS_PER_PROCESSOR, gpu.processors = 3, lambda device: 1
    results = {
        name: with_gradients(kernel(case), *on_device(case))
        for name, case in CASES.items()
        if (name in SAMPLE) == (which == 'sample')
    }
    add = add_repeated if which == 'sample' else add_recorded
    add(results)
    torch.save(results, path)


def add_repeated(results):
    results['again'] = with_gradients(kernel(SMALL), *on_device(SMALL))
    results['checkpoint'] = with_gradients(
        lambda *x: checkpoint(kernel(SMALL), *x, use_reentrant=False), *on_device(SMALL)
    )
    qkv, bias, padding, grad = on_device(SMALL)
    empty = torch.empty(0, *SMALL.size, qkv.shape[3], device=DEVICE)
    results['empty'] = with_gradients(kernel(SMALL), empty, bias, padding, grad[:0])
    limits = [{'dtype': torch.float64}, {'head_dim': 129}, {'tokens': 257}, {'tokens': 256, 'head_dim': 64}]
    results['limits'] = [why_not(DEVICE, **limit) for limit in limits]


def add_recorded(results):
    graphs = []

    def record(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == 'call_function'])
        return graph.forward

    def reason_and_result(qkv, bias, padding):
        assert why_not(qkv.device, qkv.dtype, SMALL.head_dim, bias.shape[1]) is None
        return kernel(SMALL)(qkv, bias, padding)

    compiled = torch.compile(reason_and_result, backend=record, fullgraph=True)
    results['compiled'] = with_gradients(compiled, *on_device(SMALL))
    with torch.no_grad():
        compiled(*on_device(SMALL)[:3])
    results['graphs'] = graphs

    qkv, bias, padding, grad = on_device(SMALL)
    options = (SMALL.heads, SMALL.window, 0.2, SMALL.shift, SMALL.grid)
    checks = ('test_schema', 'test_faketensor')
    operators = torch.ops.mmext_backbones
    forward, backward = operators.window_attention_triton.default, operators.window_attention_triton_backward.default
    torch.library.opcheck(forward, (qkv, bias, padding, *options), test_utils=checks)
    torch.library.opcheck(backward, (grad, qkv, bias, padding, *options), test_utils=checks)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    return compute('sample', tmp_path_factory)


@pytest.fixture(scope='module')
def other_results(tmp_path_factory):
    return compute('others', tmp_path_factory)


def compute(which, tmp_path_factory):
    if DEVICE.type == 'cuda' and why_not(DEVICE):
        pytest.skip(why_not(DEVICE))
    if DEVICE.type == 'cpu' and triton_version() < (3, 1):
        pytest.skip(needs_interpreter.kwargs['reason'])
    path = tmp_path_factory.mktemp('triton') / 'results.pt'
    environment = os.environ | {'TRITON_INTERPRET': str(int(DEVICE.type == 'cpu'))}
    command = [sys.executable, '-m', __name__, path, which]  # by name, from the root: another `tests` may be installed
    root = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return torch.load(path, map_location='cpu')


@pytest.mark.parametrize('name', SAMPLE)
def test_agrees_with_the_formula_in_output_and_all_gradients(results, name):
    check_agreement(CASES[name], results[name])


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in CASES if name not in SAMPLE])
def test_the_other_cases_agree_too(other_results, name):
    check_agreement(CASES[name], other_results[name])


def check_agreement(case, actual):
    qkv, bias, padding, grad = inputs(case)
    if padding is not None:
        padding = padding.to(case.dtype)  # rounded as the tokens of the map are
    double = [None if x is None else x.double() for x in (qkv, bias, padding, grad)]
    expected = with_gradients(lambda *x: reference(*x, case), *double)
    assert actual.keys() == expected.keys()
    assert actual['out'].dtype == actual['grad_qkv'].dtype == case.dtype
    assert actual['grad_bias'].dtype == torch.float32
    for key, value in expected.items():
        error = (actual[key].double() - value).abs().max()
        assert error <= TOLERANCES[case.dtype] * value.abs().max(), key


def test_a_map_of_whole_windows_leaves_the_padding_no_gradient(results):
    assert not results['whole']['grad_padding'].any()


def test_padding_is_no_query(results):
    grad = results['shifted']['grad_padding']
    assert not grad[: grad.numel() // 3].any()
    assert grad[grad.numel() // 3 :].all()


@pytest.mark.parametrize('other', ['again', 'checkpoint'])
def test_the_same_bits_every_time(results, other):
    first = results['oblong, runs of windows']
    for key in NAMES:
        assert torch.equal(first[key], results[other][key]), key


@pytest.mark.slow
def test_torch_compile_sees_the_operator_and_gives_the_same_bits(results, other_results):
    for key in NAMES:
        assert torch.equal(results['oblong, runs of windows'][key], other_results['compiled'][key]), key
    with_gradients, without = other_results['graphs']
    assert with_gradients[0] == 'autograd_function_apply'
    assert without == ['mmext_backbones.window_attention_triton']


def test_an_empty_batch(results):
    assert results['empty']['out'].shape == (0, *SMALL.size, SMALL.heads * SMALL.head_dim)
    assert not results['empty']['grad_bias'].any()
    assert not results['empty']['grad_padding'].any()


def test_limits_are_named(results):
    messages = ('torch.float64', '129 channels', '257 tokens', 'take 64 KiB')
    for reason, message in zip(results['limits'], messages, strict=True):
        assert message in reason


@pytest.mark.skipif(os.environ.get('TRITON_INTERPRET', '0') != '0', reason='TRITON_INTERPRET is set')
def test_the_cpu_without_the_interpreter_is_refused():
    message = 'it runs on GPUs, not on cpu' if triton_version() >= (3,) else 'is too old'
    assert message in why_not(torch.device('cpu'))
    with pytest.raises(RuntimeError, match=message):
        kernel(SMALL)(*inputs(SMALL)[:3])


if __name__ == '__main__':
    main(*sys.argv[1:])
