"""Second derivatives, function transforms and forward mode: right from the references, refused by the fast forms."""

import pytest
import torch
from torch.autograd import forward_ad

from mmext_backbones.ops import bilstm2d, elsa, outlook, product_conv, window_attention
from mmext_backbones.ops.mlp import norm_mlp
from mmext_backbones.ops.recompute import LayerNorm, Linear, recompute
from tests.torch_features import needs_kernels


def leaves(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]


def lstm(C, h):
    return [(4 * h, C), (4 * h, h), (4 * h,), (4 * h,)] * 2


# operator -> (function of its tensors and a backend, their shapes)
OPERATORS = {
    'window_attention': (
        lambda qkv, bias, padding, **form: window_attention(
            qkv, bias, padding=padding, num_heads=1, window_size=(2, 2), scale=1.0, shift_size=1, **form
        ),
        [(1, 3, 2, 6), (1, 4, 4), (6,)],
    ),
    'elsa': (
        lambda v, logits, add, **form: elsa(v, logits, ghost_add=add, num_heads=1, kernel_size=3, **form),
        [(1, 2, 2, 3), (1, 9, 2, 3), (2, 3, 3)],
    ),
    'product_conv': (lambda q, k, w, **form: product_conv(q, k, w, **form), [(1, 2, 2, 4), (1, 2, 2, 4), (4, 4, 7, 7)]),
    'bilstm2d': (lambda x, *w, **form: bilstm2d(x, w[:8], w[8:], **form), [(1, 2, 3, 2), *lstm(2, 1), *lstm(2, 1)]),
    'outlook': (
        lambda v, logits, **form: outlook(v, logits, num_heads=1, **form),
        [(1, 2, 3, 2), (1, 1, 2, 81)],
    ),
    'recompute': (
        lambda x, w, b, *norm: recompute(LayerNorm(1e-5), Linear(), x, w, b, *norm),
        [(3, 2), (4, 2), (4,), (2,), (2,)],
    ),
    'norm_mlp': (lambda *tensors: norm_mlp(*tensors, eps=1e-5), [(3, 2), (2,), (2,), (4, 2), (4,), (2, 4), (2,)]),
}  # fmt: skip
WITH_REFERENCE = list(OPERATORS)[:5]
KERNELS = (
    'window_attention',
    'product_conv',
    'bilstm2d',
)  # without their kernels they run in PyTorch, which has second ones
FAST = [pytest.param(name, {}, marks=needs_kernels if name in KERNELS else ()) for name in OPERATORS]
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


@pytest.mark.parametrize('name', WITH_REFERENCE)
def test_the_reference_has_second_derivatives(name):
    function, shapes = OPERATORS[name]
    inputs = leaves(*shapes)
    assert torch.autograd.gradgradcheck(lambda *x: function(*x, backend='reference'), inputs, fast_mode=True)


@pytest.mark.parametrize('name', WITH_REFERENCE)
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


@pytest.mark.parametrize('name', WITH_REFERENCE)
def test_a_kernel_asked_for_by_name_says_that_it_has_no_transforms(name):
    function, shapes = OPERATORS[name]
    x, *others = (leaf.detach() for leaf in leaves(*shapes))
    with pytest.raises(RuntimeError, match=r"backend='cpu': it has no function transforms .* backend='reference'"):
        torch.func.grad(lambda x: function(x, *others, backend='cpu').sum())(x)


@pytest.mark.parametrize('name', WITH_REFERENCE)
def test_arguments_on_different_devices_are_named(name):
    """PyTorch would run an operator of the CPU without reading what is on the meta device."""
    function, shapes = OPERATORS[name]
    tensors = [leaf.detach() for leaf in leaves(*shapes)]
    for i in range(len(tensors)):
        mixed = [tensor.to('meta') if i == j else tensor for j, tensor in enumerate(tensors)]
        with pytest.raises(ValueError, match=r'is on (meta|cpu) and \w+ on (meta|cpu): expected one device'):
            function(*mixed)
