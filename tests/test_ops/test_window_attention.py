"""Window attention: every backend against the formula, and the formula against a loop."""

import math

import pytest
import torch

from mmext_backbones.layers import PartitionAttention, WindowAttention
from mmext_backbones.ops import window_attention
from mmext_backbones.ops.window_attention import cpu
from tests.torch_features import needs_compile

NO_COMPILER = cpu.why_not()
needs_compiler = pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
FAST = [pytest.param('cpu', marks=needs_compiler), 'torch', 'export']
# heads, head_dim, window, map, shift, grid, padding takes part
CASES = {
    'swin': (3, 32, (7, 7), (15, 23), 3, False, True),
    'whole windows': (2, 32, (7, 7), (14, 21), 3, False, True),
    'no shift': (2, 32, (7, 7), (9, 20), 0, False, True),
    'map within a window': (5, 8, (7, 7), (3, 5), 3, False, True),
    'one token': (2, 4, (7, 7), (1, 1), 3, False, True),
    'large windows': (1, 40, (12, 12), (20, 13), 6, False, True),  # two blocks of queries
    'maxvit window': (2, 32, (7, 7), (16, 11), 0, False, False),
    'maxvit grid': (2, 32, (7, 7), (16, 11), 0, True, False),
    'grid of one row of cells': (2, 8, (7, 7), (5, 9), 0, True, False),
    'oblong window': (3, 5, (3, 4), (10, 9), 0, False, False),
    'oblong grid': (1, 17, (5, 2), (12, 7), 0, True, False),
    'long windows': (1, 3, (1, 13), (2, 30), 0, False, False),
    'window of one': (2, 3, (1, 1), (3, 2), 0, False, False),
    'shifted and hidden': (2, 6, (4, 3), (9, 10), 2, False, False),
    'grid with padding': (2, 6, (4, 3), (9, 10), 0, True, True),
}
each_case = pytest.mark.parametrize('case', CASES.values(), ids=CASES)


def inputs(case, dtype=torch.float64, batch=2, requires_grad=True):
    """Leaves: qkv, bias and, if it takes part, padding."""
    heads, head_dim, (h, w), size, _, _, takes_part = case
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, *size, 3 * heads * head_dim), (heads, h * w, h * w), (3 * heads * head_dim,)]
    leaves = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes[: 2 + takes_part]]
    return [leaf.to(dtype).requires_grad_(requires_grad) for leaf in leaves]


def attend(case, qkv, bias, padding=None, **options):
    heads, head_dim, window_size, _, shift_size, grid, _ = case
    shared = {'num_heads': heads, 'window_size': window_size, 'scale': head_dim**-0.5}
    return window_attention(qkv, bias, **shared, shift_size=shift_size, grid=grid, padding=padding, **options)


def results(case, leaves, **options):
    """The output, and the gradients of a loss that weighs every element differently."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = attend(case, *leaves, **options)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    grads = torch.autograd.grad(out, leaves, weight, allow_unused=True, materialize_grads=True)
    return [out.detach(), *grads]


def check(actual, expected, tolerance):
    """Largest difference by largest element."""
    for name, a, e in zip(('out', 'qkv', 'bias', 'padding'), actual, expected, strict=False):
        assert a.shape == e.shape
        assert (a.double() - e.double()).abs().max() <= tolerance * max(e.abs().max().item(), 1e-3), name


def by_loop(case, qkv, bias, padding=None):
    """The definition, pair by pair: which tokens of the filled and rolled map share a window, and what parts them."""
    heads, head_dim, (h, w), (H, W), shift, grid, _ = case
    rows, cols = math.ceil(H / h), math.ceil(W / w)

    def group(y, x):  # of a place of the rolled map, and the token within
        if grid:
            return (y % rows, x % cols), (y // rows) * w + x // cols
        return (y // h, x // w), (y % h) * w + x % w

    def region(at, size, window):
        return 0 if at < size - window else 1 if at < size - shift else 2

    members = {}
    for y in range(rows * h):
        for x in range(cols * w):
            key, n = group(y, x)
            place = ((y + shift) % (rows * h), (x + shift) % (cols * w))
            part = (region(y, rows * h, h), region(x, cols * w, w)) if shift else None
            members.setdefault(key, []).append((n, place, part))

    out = torch.zeros(*qkv.shape[:3], heads, head_dim, dtype=qkv.dtype)
    for tokens in members.values():
        inside = [(n, place, part) for n, place, part in tokens if place[0] < H and place[1] < W]
        keys = inside if padding is None else tokens
        packed = [
            (qkv[:, place[0], place[1]] if (n, place, part) in inside else padding.expand(len(qkv), -1)).unflatten(
                1, (3, heads, head_dim)
            )
            for n, place, part in keys
        ]
        k, v = (torch.stack([p[:, i] for p in packed], dim=1) for i in (1, 2))  # [B, keys, heads, head_dim]
        for n, (y, x), part in inside:
            q = qkv[:, y, x].unflatten(1, (3, heads, head_dim))[:, 0]
            logits = torch.einsum('bhd,bkhd->bkh', q, k) * head_dim**-0.5
            logits = logits + bias[:, n, [m for m, _, _ in keys]].T
            logits = logits + torch.tensor([0.0 if other == part else -100.0 for _, _, other in keys])[:, None]
            out[:, y, x] = torch.einsum('bkh,bkhd->bhd', logits.softmax(dim=1), v)
    return out.flatten(3)


@each_case
def test_the_reference_is_the_definition(case):
    leaves = inputs(case, requires_grad=False)
    torch.testing.assert_close(attend(case, *leaves, backend='reference'), by_loop(case, *leaves), rtol=0, atol=1e-12)


# float32: a few roundings of the largest element; the gradient of padding sums over all windows
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('backend', FAST)
@each_case
def test_agrees_with_the_reference_in_output_and_all_gradients(case, backend, dtype, tolerance):
    leaves = inputs(case)
    check(
        results(case, [leaf.to(dtype) for leaf in leaves], backend=backend),
        results(case, leaves, backend='reference'),
        tolerance,
    )


@pytest.mark.parametrize('backend', [*FAST, 'reference'])
@pytest.mark.parametrize(('size', 'shift'), [((3, 5), 0), ((7, 7), 0), ((3, 8), 3), ((8, 3), 3), ((9, 20), 3)])
def test_a_map_within_one_window_stays_where_it_is_if_asked_to(size, shift, backend):
    case = (2, 4, (7, 7), size, 3, False, True)
    leaves = inputs(case, requires_grad=False)
    out = attend(case, *leaves, shift_single_window=False, backend=backend)
    expected = attend((*case[:4], shift, *case[5:]), *leaves, backend='reference')
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def sliced(x):
    """As a part of a wider projection."""
    return torch.cat([x, x], dim=3)[..., : x.shape[3]]


def channels_first(x):
    return x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)


def cropped(x):
    return torch.nn.functional.pad(x, (0, 0, 0, 2, 0, 1))[:, : x.shape[1], : x.shape[2]]


def transposed(x):
    return x.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize('layout', [sliced, channels_first, cropped, transposed])
@pytest.mark.parametrize('size', [(9, 16), (5, 1), (1, 4)], ids=str)
@pytest.mark.parametrize('backend', FAST)
def test_memory_layouts(layout, size, backend):
    case = (2, 4, (3, 3), size, 1, False, True)
    leaves = inputs(case)
    expected = results(case, leaves, backend='reference')

    qkv = leaves[0].detach().clone().requires_grad_()
    out = attend(case, layout(qkv), *leaves[1:], backend=backend)
    assert out.is_contiguous()
    grad = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    grad_qkv = torch.autograd.grad(out, qkv, transposed(grad))[0]
    check([out.detach(), grad_qkv], expected[:2], 1e-12)


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['swin', 'maxvit grid', 'oblong window'])
def test_half_precision_is_computed_in_float32(name, dtype):
    # Against the exact result from the same rounded inputs only output and gradients are rounded: half a unit of the
    # last place of the largest element. PyTorch's form rounds logits and weights too, and may be 4 times as far off.
    case = CASES[name]
    leaves = [inputs(case, dtype)[0], *inputs(case, torch.float32)[1:]]
    rounded = [leaf.double() for leaf in leaves]
    if len(rounded) == 3:
        rounded[2] = leaves[2].to(dtype).double()  # the padding is rounded as the map is
    actual, expected = results(case, leaves, backend='compiled'), results(case, rounded, backend='reference')
    assert [x.dtype for x in actual] == [dtype, dtype, *[torch.float32] * (len(leaves) - 1)]
    eps = torch.finfo(dtype).eps
    check(actual[:2], expected[:2], 0.51 * eps)
    check(actual[2:], expected[2:], 2 * eps)  # the incoming gradient was rounded
    check(results(case, leaves, backend='torch')[:2], expected[:2], 4 * eps)


@needs_compiler
def test_half_precision_keeps_what_is_not_a_number_and_rounds_to_even():
    """A window of one token passes v on: the conversions of the kernel against PyTorch's, for every float16."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    options = {'num_heads': 1, 'window_size': (1, 1), 'scale': 1.0, 'backend': 'compiled'}
    for dtype in (torch.float16, torch.bfloat16):
        v = bits.view(dtype).view(1, 1, -1, 1)
        qkv = torch.cat([torch.zeros_like(v), torch.zeros_like(v), v], dim=3)
        out = window_attention(qkv, torch.zeros(1, 1, 1), **options)
        torch.testing.assert_close(out, v, rtol=0, atol=0, equal_nan=True)
    # gradients are rounded: scale * grad is no number of the dtype
    for dtype in (torch.float16, torch.bfloat16):
        values = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
        q, k, v = values.unbind()
        # two tokens a window, logits 0 and a bias that gives weights 1/4 and 3/4
        bias = torch.tensor([[[0.0, math.log(3.0)], [0.0, math.log(3.0)]]])
        qkv = torch.stack([torch.zeros_like(q), torch.zeros_like(k), v], dim=1).view(1, 1, 40, 3)
        out = window_attention(qkv, bias, **(options | {'window_size': (1, 2)}))
        exact = v.double().view(-1, 2) @ torch.tensor([0.25, 0.75], dtype=torch.float64)
        error = (out.view(-1, 2)[:, 0].double() - exact).abs() / exact.abs()
        assert error.max() <= 0.51 * torch.finfo(dtype).eps


@pytest.mark.parametrize('backend', [*FAST, 'reference'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_extreme_logits(backend, dtype):
    """A softmax over logits far apart neither overflows nor loses its sum, and a NaN shows in its window only."""
    case = (1, 4, (2, 2), (4, 4), 0, False, False)
    qkv, bias = inputs(case, dtype, batch=1, requires_grad=False)
    bias[0, 0, 1:], bias[0, 1, 2:], bias[0, 2] = -1e4, 1e4, -3e4
    out = attend(case, qkv, bias, backend=backend)
    assert out.isfinite().all()
    torch.testing.assert_close(out[0, 0, 0], qkv[0, 0, 0, 8:])  # the first token of a window sees only itself
    expected = attend(case, qkv.double(), bias.double(), backend='reference')
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-2 if dtype == torch.float32 else 1e-9)
    qkv[0, 3, 3, 0] = float('nan')
    broken = attend(case, qkv, bias, backend=backend)
    assert broken[0, 3, 3].isnan().all()
    assert broken[0, :2].isfinite().all()


@needs_compiler
def test_saves_nothing_but_its_inputs():
    case = (3, 32, (7, 7), (30, 40), 3, False, True)
    leaves, saved = inputs(case, torch.float32), {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        attend(case, *leaves, backend='compiled')
    assert sum(saved.values()) <= sum(leaf.nbytes for leaf in leaves)


@needs_compiler
def test_autocast_keeps_the_map_in_half_precision_and_the_sums_in_float32():
    case = CASES['swin']
    qkv, bias, padding = inputs(case, torch.bfloat16, requires_grad=False)
    expected = attend(case, qkv, bias.float(), padding, backend='compiled')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = attend(case, qkv, bias.float(), padding.float(), backend='compiled')
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_triton_is_refused_on_the_cpu():
    case = CASES['swin']
    with pytest.raises(RuntimeError, match="backend='triton': it runs on cuda, qkv is on cpu"):
        attend(case, *inputs(case), backend='triton')


@pytest.mark.parametrize('backend', ['torch', 'reference', 'auto'])
def test_dropout(backend):
    """What stays of the weights is scaled up: the mean over draws is the result without."""
    case = (1, 4, (2, 2), (4, 4), 1, False, True)
    qkv, bias, padding = inputs(case, requires_grad=False)
    torch.manual_seed(0)
    draws = torch.stack([attend(case, qkv, bias, padding, dropout=0.3, backend=backend) for _ in range(600)])
    expected = attend(case, qkv, bias, padding, backend=backend)
    assert not torch.equal(draws[0], draws[1])
    # six standard errors of a mean of independent draws
    assert ((draws.mean(dim=0) - expected).abs() <= 6 * draws.std(dim=0) / len(draws) ** 0.5 + 1e-12).all()
    with pytest.raises(RuntimeError, match="backend='compiled': it has no dropout"):
        attend(case, qkv, bias, padding, dropout=0.3, backend='compiled')


@needs_compile
@needs_compiler
@pytest.mark.parametrize('layer', [WindowAttention(24, 3, shift_size=3), PartitionAttention(64, 2, grid=True)])
def test_torch_compile_sees_one_node(layer):
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(layer, backend=record, dynamic=True)
    context = () if isinstance(layer, WindowAttention) else ((7, 7),)
    for H, W in ((8, 9), (11, 17)):
        x = torch.randn(1, H, W, layer.proj.in_features)
        torch.testing.assert_close(compiled(x, *context), layer(x, *context), rtol=0, atol=0)
    assert len(graphs) == 1  # no break, no compilation for the second size


@needs_compiler
def test_the_shapes_of_the_operators_on_the_meta_device():
    case = CASES['swin']
    leaves = inputs(case, torch.float32, requires_grad=False)
    options = (3, (7, 7), 32**-0.5, 3, False)
    operators = torch.ops.mmext_backbones.window_attention, torch.ops.mmext_backbones.window_attention_backward
    out = operators[0](*leaves, *options)
    for operator, arguments in zip(operators, (leaves, [out, *leaves]), strict=True):
        real, meta = operator(*arguments, *options), operator(*[x.to('meta') for x in arguments], *options)
        real, meta = [(x,) if isinstance(x, torch.Tensor) else x for x in (real, meta)]
        assert [(x.shape, x.stride(), x.dtype) for x in real] == [(x.shape, x.stride(), x.dtype) for x in meta]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'num_heads': 5}, r'qkv has shape \(1, 6, 6, 24\): .* num_heads=5'),
        ({'qkv': torch.zeros(6, 6, 24)}, r'qkv has shape \(6, 6, 24\)'),
        ({'qkv': torch.zeros(1, 6, 6, 24, dtype=torch.int64)}, 'qkv has dtype torch.int64'),
        ({'window_size': (3, 0)}, r'window_size=\(3, 0\)'),
        ({'shift_size': 3}, r'shift_size=3: .* window_size=\(3, 3\)'),
        ({'shift_size': 1, 'grid': True}, 'shift_size=1: expected 0 with grid=True'),
        ({'bias': torch.zeros(2, 9, 8)}, r'bias has shape \(2, 9, 8\): expected \(2, 9, 9\)'),
        ({'padding': torch.zeros(8)}, r'padding has shape \(8,\): expected \(24,\)'),
        ({'dropout': 1.0}, 'dropout=1.0'),
    ],
)
def test_bad_arguments_are_named(changes, message):
    arguments = {
        'qkv': torch.zeros(1, 6, 6, 24),
        'bias': torch.zeros(2, 9, 9),
        'num_heads': 2,
        'window_size': (3, 3),
        'scale': 1.0,
    }
    with pytest.raises(ValueError, match=message):
        window_attention(**(arguments | changes))
