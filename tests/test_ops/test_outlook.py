"""Outlook attention: every form against plain loops, PyTorch's gradients, and its authors' numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmext_backbones.layers import OutlookAttention
from mmext_backbones.ops import outlook
from tests.conftest import seeded_tensor
from tests.torch_features import HALF_AUTOCAST, NO_KERNELS

VECTORS = Path(__file__).parents[1] / 'data' / 'outlook_attention.npz'
FAST = ['torch', *([] if NO_KERNELS else ['cpu'])]
FORMS = [*FAST, 'reference', 'export']
# heads, channels of a head, kernel, stride, size: odd and even sizes, windows side by side and apart, a single pixel
CASES = [
    (2, 3, 3, 2, (5, 8)),
    (1, 4, 3, 2, (6, 7)),
    (2, 2, 3, 1, (4, 5)),
    (1, 2, 5, 2, (7, 4)),
    (3, 1, 3, 3, (7, 8)),
    (1, 2, 5, 3, (1, 9)),
    (2, 2, 3, 2, (1, 1)),
    (1, 3, 1, 1, (2, 3)),
]
each_case = pytest.mark.parametrize('case', CASES, ids=str)


def tensors(case, batch=2, dtype=torch.float64):
    heads, d, kernel, stride, (H, W) = case
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(batch, H, W, heads * d, generator=generator, dtype=dtype)
    logits = torch.randn(batch, -(-H // stride), -(-W // stride), heads * kernel**4, generator=generator, dtype=dtype)
    return v, logits


def options(case):
    return {'num_heads': case[0], 'kernel_size': case[2], 'stride': case[3], 'scale': 0.7}


def by_loops(v, logits, *, num_heads, kernel_size, stride, scale):
    """The formula, window by window and place by place."""
    (B, H, W, C), (_, h, w, _) = v.shape, logits.shape
    out, d, half = torch.zeros_like(v), C // num_heads, kernel_size // 2
    places = [(a - half, b - half) for a in range(kernel_size) for b in range(kernel_size)]
    for image, y, x, g in np.ndindex(B, h, w, num_heads):
        weights = logits[image, y, x].view(num_heads, len(places), len(places))[g].mul(scale).softmax(dim=-1)
        channels = slice(g * d, (g + 1) * d)
        for i, (down, right) in enumerate(places):
            row, column = y * stride + down, x * stride + right
            if not (0 <= row < H and 0 <= column < W):
                continue
            for j, (other_down, other_right) in enumerate(places):
                r, c = y * stride + other_down, x * stride + other_right
                if 0 <= r < H and 0 <= c < W:
                    out[image, row, column, channels] += weights[i, j] * v[image, r, c, channels]
    return out


@each_case
@pytest.mark.parametrize('form', FORMS)
def test_every_form_is_the_formula(case, form):
    v, logits = tensors(case)
    expected = by_loops(v, logits, **options(case))
    torch.testing.assert_close(outlook(v, logits, **options(case), backend=form), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('case', [(1, 2, 3, 2, (3, 4)), (2, 1, 3, 2, (1, 1)), (1, 3, 1, 1, (2, 3))], ids=str)
@pytest.mark.parametrize('form', FORMS)
def test_gradients(case, form):
    leaves = [x.requires_grad_() for x in tensors(case, batch=1)]
    assert torch.autograd.gradcheck(lambda v, logits: outlook(v, logits, **options(case), backend=form), leaves)


@pytest.mark.parametrize('case', CASES[:4], ids=str)
def test_gradients_of_all_forms_are_those_of_the_reference(case):
    grads = {}
    for form in FORMS:
        leaves = [x.requires_grad_() for x in tensors(case)]
        out = outlook(*leaves, **options(case), backend=form)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        grads[form] = [leaf.grad for leaf in leaves]
    for form in (*FAST, 'export'):
        for grad, expected in zip(grads[form], grads['reference'], strict=True):
            torch.testing.assert_close(grad, expected, rtol=1e-11, atol=1e-12)


def test_a_gradient_that_nobody_wants_is_not_computed():
    v, logits = tensors(CASES[0])
    for wanted in (0, 1):
        leaves = [v.clone(), logits.clone()]
        leaves[wanted].requires_grad_()
        outlook(*leaves, **options(CASES[0])).sum().backward()
        assert leaves[wanted].grad is not None


def test_windows_add_up():
    """Values of one everywhere: a pixel gets as much as windows hold it, less where these reach beyond the map."""
    v, logits = torch.ones(1, 6, 7, 1), torch.zeros(1, 3, 4, 81)
    out = outlook(v, logits, num_heads=1)[0, :, :, 0]
    rows, columns = torch.tensor([1, 2, 1, 2, 1, 1]), torch.tensor([1, 2, 1, 2, 1, 2, 1])
    whole = rows[:, None] * columns
    inside = torch.zeros(6, 7, dtype=torch.bool)
    inside[2:5, 2:5] = True  # all of whose windows lie on the map
    assert torch.allclose(out[inside], whole[inside].float())
    assert (out <= whole + 1e-5).all()
    assert (out[~inside] < whole[~inside] - 1e-3).any()


@pytest.mark.parametrize('name', ['stride2', 'stride1', 'kernel5'])
def test_module_agrees_with_the_authors(name):
    vectors = np.load(VECTORS)
    case = {key.partition('.')[2]: vectors[key] for key in vectors.files if key.startswith(f'{name}.')}
    C, heads, kernel, padding, stride, bias = case['args'].tolist()
    assert padding == kernel // 2
    module = OutlookAttention(C, heads, kernel, stride, v_bias=bool(bias))
    keys = json.loads(str(case['keys']))
    module.load_state_dict({key: seeded_tensor(key, tuple(shape)) for key, shape in keys.items()})
    for form in FORMS:
        module.backend = form
        module.zero_grad()
        x = torch.from_numpy(case['x']).requires_grad_()
        out = module(x)
        (out * torch.from_numpy(case['grad_out'])).sum().backward()
        for actual, wanted in ((out, 'out'), (x.grad, 'grad_x'), (module.attn.weight.grad, 'grad_attn_weight')):
            wanted = torch.from_numpy(case[wanted])
            assert (actual - wanted).abs().max() <= 2e-6 * wanted.abs().max()


def test_second_derivatives_are_refused_or_right(monkeypatch):
    case = (1, 2, 3, 2, (2, 3))
    leaves = [x.requires_grad_() for x in tensors(case, batch=1)]

    def run(v, logits):
        return outlook(v, logits, **options(case))

    with pytest.raises(RuntimeError, match='MMEXT_BACKEND=reference'):
        torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
    monkeypatch.setenv('MMEXT_BACKEND', 'reference')
    v, logits = leaves
    assert torch.autograd.gradgradcheck(lambda v: run(v, logits), (v,))


def test_function_transforms_take_the_reference():
    case = CASES[0]
    v, logits = tensors(case)
    batched = torch.func.vmap(lambda v, logits: outlook(v[None], logits[None], **options(case))[0])(v, logits)
    torch.testing.assert_close(batched, outlook(v, logits, **options(case)))
    with pytest.raises(RuntimeError, match=r"backend='torch': .*function transforms"):
        torch.func.vmap(lambda v, logits: outlook(v[None], logits[None], **options(case), backend='torch'))(v, logits)


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF_AUTOCAST])
def test_narrow_types(dtype):
    v, logits = tensors((2, 4, 3, 2, (6, 9)), dtype=torch.float32)
    exact = outlook(v, logits, num_heads=2)
    out = outlook(v.to(dtype), logits.to(dtype), num_heads=2)
    assert out.dtype == dtype
    assert (out.float() - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize('form', FORMS)
def test_an_empty_batch_and_the_meta_device(form):
    v, logits = (x[:0] for x in tensors(CASES[0]))
    assert outlook(v, logits, **options(CASES[0]), backend=form).shape == v.shape
    v, logits = (x.to('meta') for x in tensors(CASES[0]))
    assert outlook(v, logits, **options(CASES[0]), backend=form).shape == v.shape


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_heads': 4}, r'v has shape \(2, 5, 8, 6\): expected \[B, H, W, C\] with C a multiple of num_heads=4'),
        ({'num_heads': 0}, 'num_heads=0'),
        ({'kernel_size': 2}, 'kernel_size=2: expected an odd number'),
        ({'stride': 4}, 'stride=4: expected from 1 up to kernel_size=3'),
        ({'stride': 0}, 'stride=0'),
        ({'stride': 1}, r'logits have shape \(2, 3, 4, 162\): expected \(2, 5, 8, 162\)'),
        ({'backend': 'gpu'}, "backend='gpu': expected one of auto, cpu, torch, reference, export"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        outlook(*tensors(CASES[0]), **(options(CASES[0]) | change))


def test_one_device():
    v, logits = tensors(CASES[0])
    with pytest.raises(ValueError, match='expected one device'):
        outlook(v, logits.to('meta'), **options(CASES[0]))
