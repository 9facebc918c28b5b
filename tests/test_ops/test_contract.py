"""What every operator promises: how its form is chosen, gradients, the same bits, derivatives. The rest is in its file.

That an operator computes what it should stands there too: each has a definition of its own to be held against.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

from mmext_backbones.ops import bilstm2d, elsa, outlook, product_conv, window_attention
from mmext_backbones.ops.c_kernels import KERNELS
from mmext_backbones.ops.mlp import norm_mlp
from mmext_backbones.ops.recompute import LayerNorm, Linear, recompute
from tests.torch_features import needs_kernels


def leaves(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def windows(heads, head_dim, window_size, shift_size=0, grid=False):
    """Window attention as a function of its tensors and a form; so are the next ones."""
    options = {'num_heads': heads, 'window_size': window_size, 'shift_size': shift_size, 'grid': grid}
    return lambda qkv, bias, padding=None, **form: window_attention(
        qkv, bias, padding=padding, scale=head_dim**-0.5, **options, **form
    )


def filters(heads, kernel_size, **options):
    return lambda v, logits, add, mul=None, **form: elsa(
        v, logits, mul, add, num_heads=heads, kernel_size=kernel_size, **options, **form
    )


def lstm(C, h):
    """Shapes of the weights."""
    return [(4 * h, C), (4 * h, h), (4 * h,), (4 * h,)] * 2


# operator -> (function of its tensors and a form, their shapes)
WITH_REFERENCE = {
    'window_attention': (windows(1, 2, (2, 2), shift_size=1), [(1, 3, 2, 6), (1, 4, 4), (6,)]),
    'elsa': (filters(1, 3), [(1, 2, 2, 3), (1, 9, 2, 3), (2, 3, 3)]),
    'product_conv': (product_conv, [(1, 2, 2, 4), (1, 2, 2, 4), (4, 4, 7, 7)]),
    'bilstm2d': (lambda x, *w, **form: bilstm2d(x, w[:8], w[8:], **form), [(1, 2, 3, 2), *lstm(2, 1), *lstm(2, 1)]),
    'outlook': (lambda v, logits, **form: outlook(v, logits, num_heads=1, **form), [(1, 2, 3, 2), (1, 1, 2, 81)]),
}
OPERATORS = WITH_REFERENCE | {
    'recompute': (
        lambda x, w, b, *norm: recompute(LayerNorm(1e-5), Linear(), x, w, b, *norm),
        [(3, 2), (4, 2), (4,), (2,), (2,)],
    ),
    'norm_mlp': (lambda *tensors: norm_mlp(*tensors, eps=1e-5), [(3, 2), (2,), (2,), (4, 2), (4,), (2, 4), (2,)]),
}
FORMS = {
    'window_attention': 'cpu, gpu, torch, reference, export',
    'elsa': 'cpu, torch, reference, export, gpu',
    'product_conv': 'cpu, torch, reference',
    'bilstm2d': 'cpu, torch, reference',
    'outlook': 'cpu, torch, reference, export',
}
each = pytest.mark.parametrize('name', WITH_REFERENCE)

# --------------------------------------------------------------------------------------------------------------------
# Which form runs


@each
def test_the_environment_names_the_form(name, monkeypatch):
    function, shapes = WITH_REFERENCE[name]
    tensors = leaves(*shapes)
    monkeypatch.setenv(f'MMEXT_{name.upper()}_BACKEND', 'fastest')
    with pytest.raises(ValueError, match="backend='fastest'"):
        function(*tensors)
    function(*tensors, backend='torch')  # an argument goes before it
    monkeypatch.setenv(f'MMEXT_{name.upper()}_BACKEND', 'reference')
    out, expected = function(*tensors), function(*tensors, backend='reference')
    assert torch.equal(out, expected)
    assert out.grad_fn.name() == expected.grad_fn.name()


@each
def test_an_unknown_form_is_named(name):
    function, shapes = WITH_REFERENCE[name]
    with pytest.raises(ValueError, match=f"backend='cuda': expected one of auto, {FORMS[name]}$"):
        function(*leaves(*shapes), backend='cuda')


WITHOUT = """
import sys
import torch
import mmengine.runner  # which brings torch's compiler, in older versions
before = set(sys.modules)
from mmext_backbones.ops.window_attention.gpu import why_not
assert not {'triton', 'torch._dynamo'} & (set(sys.modules) - before)
sys.modules['triton'] = None  # as if it were not installed
print(why_not(torch.device('cpu')))
from tests.test_ops.test_contract import print_what_runs
print_what_runs()
"""


def print_what_runs():
    """What the operators say without a working compiler; another process than that of the tests runs this."""
    for compiler in ('no-such-compiler', 'false'):
        os.environ['CC'] = compiler
        for kernels in KERNELS:  # as a process that has not asked yet
            kernels.library.cache_clear()
            kernels.why_not.cache_clear()
        for name, (function, shapes) in WITH_REFERENCE.items():
            tensors = leaves(*shapes)
            out, expected = function(*tensors), function(*tensors, backend='torch')
            assert torch.equal(out, expected)
            assert out.grad_fn.name() == expected.grad_fn.name()
            try:
                function(*tensors, backend='compiled')
            except RuntimeError as error:
                print(f'{name}: {error}')


def test_without_a_compiler_and_triton_auto_takes_torch_and_the_others_say_why(tmp_path):
    """Triton is not even imported before its first use."""
    environment = os.environ | {'CC': 'no-such-compiler', 'XDG_CACHE_HOME': str(tmp_path)}
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'Triton cannot be imported' in done.stdout
    for name in WITH_REFERENCE:
        for reason in ("no C compiler: 'no-such-compiler'", 'false --version ... failed'):
            assert f"{name}: backend='compiled': {reason}" in done.stdout


# --------------------------------------------------------------------------------------------------------------------
# First derivatives, and the same bits


def gradchecked():
    """Parameters (function, shapes, form): every form that has gradients, with what changes its course."""
    shapes = [(1, 4, 3, 12), (2, 6, 6), (12,)]
    cases = {
        'window_attention, shifted and hidden': (windows(2, 2, (3, 2), shift_size=1), shapes[:2]),
        'window_attention, grid with padding': (windows(2, 2, (3, 2), grid=True), shapes),
        'window_attention, map within a window': (windows(2, 2, (3, 2), shift_size=1), [(1, 3, 3, 12), *shapes[1:]]),
        'product_conv, 4': (product_conv, [(1, 2, 3, 8), (1, 2, 3, 8), (8, 4, 7, 7), (8,)]),
        'product_conv, 8': (product_conv, [(1, 2, 3, 8), (1, 2, 3, 8), (8, 8, 7, 7), (8,)]),
        'bilstm2d': (WITH_REFERENCE['bilstm2d'][0], [(1, 2, 3, 2), *lstm(2, 2), *lstm(2, 2)]),
    }
    for lam, gamma in ((0, 1), (1, 1), (2, 0.5), (1, 0), (0, 0)):
        shapes = [(1, 4, 3, 4), (1, 18, 3, 4), (4, 3, 3), (4, 3, 3)]
        cases[f'elsa, lam={lam}, gamma={gamma}'] = filters(2, 3, lam=lam, gamma=gamma), shapes
    for name, case in cases.items():
        for form in FORMS[name.partition(',')[0]].split(', '):
            static = 'lam=' in name and 'lam=0' not in name  # which kernels have not
            twin = name.startswith('product_conv') and form == 'reference'  # which is the form 'torch'
            if form == 'gpu' or twin or (form == 'cpu' and static):
                continue
            yield pytest.param(*case, form, id=f'{name}, {form}', marks=needs_kernels if form == 'cpu' else ())


@pytest.mark.parametrize(('function', 'shapes', 'form'), gradchecked())
def test_gradcheck(function, shapes, form):
    assert torch.autograd.gradcheck(lambda *tensors: function(*tensors, backend=form), leaves(*shapes))


# of more tasks than threads, with the tensors whose gradients the kernel computes: between elsa's and the logits is
# torch's softmax, and the bits of the products around that of bilstm2d depend on the threads (see its own test)
LARGE = {
    'window_attention': (windows(3, 32, (7, 7), shift_size=3), [(2, 60, 75, 288), (3, 49, 49), (288,)], [0, 1, 2]),
    'elsa': (filters(3, 7), [(1, 96, 37, 21), (1, 147, 37, 21), (96, 7, 7)], [0, 2]),
    'product_conv': (product_conv, [(3, 70, 19, 40), (3, 70, 19, 40), (40, 4, 7, 7), (40,)], [0, 1, 2, 3]),
}


@needs_kernels
@pytest.mark.parametrize('name', LARGE)
def test_the_same_bits_on_any_number_of_threads(name):
    function, shapes, differentiated = LARGE[name]
    tensors = leaves(*shapes, dtype=torch.float32)
    inputs = [tensors[i] for i in differentiated]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = function(*tensors, backend='cpu')
            grad = torch.linspace(-1, 1, out.numel()).view_as(out)
            found.append([out, *torch.autograd.grad(out, inputs, grad)])
    finally:
        torch.set_num_threads(before)
    for one, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(other, one, rtol=0, atol=0)


# --------------------------------------------------------------------------------------------------------------------
# Second derivatives, function transforms and forward mode: right from the references, refused by the fast forms

# without their kernels they run in PyTorch, which has second derivatives
IN_C = ('window_attention', 'product_conv', 'bilstm2d')
FAST = [pytest.param(name, {}, marks=needs_kernels if name in IN_C else ()) for name in OPERATORS]
FAST.append(('elsa', {'backend': 'torch'}))


@pytest.mark.parametrize(('name', 'form'), FAST)
def test_a_second_derivative_of_a_fast_form_is_refused(name, form):
    function, shapes = OPERATORS[name]
    tensors = leaves(*shapes)
    for weight in (1.0, tensors[0].sum()):  # the gradient of the output needs a gradient, or not
        out = (function(*tensors, **form) * weight).sum()
        with pytest.raises(RuntimeError, match='set the environment variable MMEXT_BACKEND=reference'):
            torch.autograd.grad(out, tensors, create_graph=True)
        with pytest.raises(RuntimeError, match='first derivatives only'):
            (function(*tensors, **form) * weight).sum().backward(create_graph=True)


@pytest.mark.parametrize(('name', 'form'), FAST)
def test_a_batch_of_gradients_is_refused_by_a_fast_form(name, form):
    function, shapes = OPERATORS[name]
    tensors = leaves(*shapes)
    out = function(*tensors, **form)
    with pytest.raises(RuntimeError, match='one gradient at a time: vectorize=False'):
        torch.autograd.grad(out, tensors, torch.randn(2, *out.shape, dtype=out.dtype), is_grads_batched=True)


@each
def test_the_reference_has_second_derivatives(name):
    function, shapes = OPERATORS[name]
    inputs = leaves(*shapes)
    assert torch.autograd.gradgradcheck(lambda *x: function(*x, backend='reference'), inputs, fast_mode=True)


@each
def test_transforms_and_forward_mode_take_the_reference(name):
    function, shapes = OPERATORS[name]
    x, *others = (leaf.detach() for leaf in leaves(*shapes))
    ahead = torch.ones_like(x)

    def run(x):
        return function(x, *others)

    step = 1e-6 * ahead
    expected = (run(x + step) - run(x - step)) / 2e-6
    out, tangent = torch.func.jvp(run, (x,), (ahead,))
    torch.testing.assert_close(out, run(x))
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-8)
    for keep in (True, False):
        with forward_ad.dual_level(), torch.set_grad_enabled(keep):
            dual = forward_ad.unpack_dual(run(forward_ad.make_dual(x, ahead))).tangent
            torch.testing.assert_close(dual, tangent)
    batch = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(run)(batch), torch.stack([run(each) for each in batch]))


@each
def test_a_kernel_asked_for_by_name_says_that_it_has_no_transforms(name):
    function, shapes = OPERATORS[name]
    x, *others = (leaf.detach() for leaf in leaves(*shapes))
    with pytest.raises(RuntimeError, match=r"backend='cpu': it has no function transforms .* backend='reference'"):
        torch.func.grad(lambda x: function(x, *others, backend='cpu').sum())(x)


@each
def test_arguments_on_different_devices_are_named(name):
    """PyTorch would run an operator of the CPU without reading what is on the meta device."""
    function, shapes = OPERATORS[name]
    tensors = [leaf.detach() for leaf in leaves(*shapes)]
    for i in range(len(tensors)):
        mixed = [tensor.to('meta') if i == j else tensor for j, tensor in enumerate(tensors)]
        with pytest.raises(ValueError, match=r'is on (meta|cpu) and \w+ on (meta|cpu): expected one device'):
            function(*mixed)
