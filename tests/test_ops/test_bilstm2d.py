"""The recurrences of BiLSTM2D against nn.LSTM in outputs and all gradients."""

from contextlib import nullcontext

import pytest
import torch
import torch._dynamo
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dev.fake_cuda import fake_cuda
from mmext_backbones.analysis.estimate import without_numbers
from mmext_backbones.layers import BiLSTM2D
from mmext_backbones.ops import bilstm2d
from mmext_backbones.ops.bilstm2d import cpu, torch_lstm
from tests.torch_features import HALF_AUTOCAST, CountOperations, needs_compile, needs_fake_backward, needs_fake_cuda

NO_COMPILER = cpu.why_not()
needs_compiler = pytest.mark.skipif(NO_COMPILER is not None, reason=f'compiled: {NO_COMPILER}')
BACKENDS = [pytest.param('cpu', marks=needs_compiler), 'torch', 'reference']


def lstms(C, h, dtype=torch.float64):
    torch.manual_seed(0)
    return [nn.LSTM(C, h, bidirectional=True, batch_first=True).to(dtype) for _ in range(2)]


def parameters(rnns):
    return [list(rnn.parameters()) for rnn in rnns]


def by_nn_lstm(x, rnns):
    """Every column and every row through its module by itself."""
    B, H, W, _ = x.shape
    v = torch.stack([torch.stack([rnns[0](x[b, :, w][None])[0][0] for w in range(W)], dim=1) for b in range(B)])
    h = torch.stack([torch.stack([rnns[1](x[b, y][None])[0][0] for y in range(H)]) for b in range(B)])
    return torch.cat((v, h), dim=3)


def results(out, inputs, grad):
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def relative_error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(
    ('shape', 'h'),
    [
        ((2, 5, 7, 12), 5),  # fewer units than a vector has
        ((3, 1, 9, 20), 48),  # sequences of one token
        ((1, 8, 1, 20), 96),
        ((1, 30, 5, 9), 21),  # more sequences than a task takes, and whole vectors with a rest
        ((2, 3, 26, 24), 64),  # four vectors: a tile and a rest
    ],
)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_agrees_with_nn_lstm_in_output_and_all_gradients(backend, dtype, tolerance, shape, h):
    rnns = lstms(shape[3], h)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(*shape[:3], 4 * h, dtype=torch.float64)
    weights = parameters(rnns)
    expected = results(by_nn_lstm(x, rnns), [x, *weights[0], *weights[1]], grad)

    x, grad = x.detach().to(dtype).requires_grad_(), grad.to(dtype)
    weights = [[w.detach().to(dtype).requires_grad_() for w in each] for each in weights]
    out = bilstm2d(x, *weights, backend=backend)
    actual = results(out, [x, *weights[0], *weights[1]], grad)
    assert out.dtype == dtype
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape
        if b.any():  # no recurrence in sequences of one token
            assert relative_error(a.double(), b) < tolerance, i
        else:
            assert not a.any()
    with torch.no_grad():  # nothing is kept then
        torch.testing.assert_close(bilstm2d(x, *weights, backend=backend), out)


@needs_compiler
def test_strided_inputs_and_gradients():
    rnns = lstms(6, 5)
    image = torch.randn(2, 8, 9, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(20, 4, 9, 2, dtype=torch.float64).permute(3, 1, 2, 0)
    x = image.permute(0, 3, 2, 1)[..., ::2].expand(2, 4, 9, 4).repeat(1, 1, 1, 2)[..., 1:7]
    assert not x.is_contiguous()
    assert not grad.is_contiguous()
    weights = parameters(rnns)
    inputs = [image, *weights[0], *weights[1]]
    expected = results(by_nn_lstm(x, rnns), inputs, grad)
    for a, b in zip(results(bilstm2d(x, *weights, backend='compiled'), inputs, grad), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize('scale', [1e-3, 1, 30, 1e4])
def test_activations_are_exact_to_a_few_roundings(scale):
    # one token, so that its gates are the input's product: exact, the matrices being an identity's rows
    h = 256
    weights = [[] for _ in range(2)]
    for i in range(4):
        weights[i // 2] += [
            torch.eye(16 * h)[i * 4 * h : (i + 1) * 4 * h],
            torch.zeros(4 * h, h),
            *torch.zeros(2, 4 * h),
        ]
    x = scale * torch.randn(1, 1, 1, 16 * h, generator=torch.Generator().manual_seed(0))
    out = bilstm2d(x, *weights, backend='compiled').view(4, h).double()
    i, _, g, o = x.double().view(4, 4, h).unbind(1)
    expected = o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
    # five rounded steps of 2^-24 each, with the exponential's and the reciprocal's; below 1e-30 nothing matters
    assert ((out - expected).abs() <= 1e-6 * expected.abs() + 1e-30).all()


@needs_compiler
def test_what_is_no_number_stays_so():
    x = torch.zeros(1, 3, 4, 8)
    x[0, 1, 2, 0] = float('nan')
    out = bilstm2d(x, *parameters(lstms(8, 3, torch.float32)), backend='compiled').isnan().view(3, 4, 4, 3).any(dim=3)
    rows, columns = torch.arange(3)[:, None], torch.arange(4)[None]
    down, up = (rows >= 1) & (columns == 2), (rows <= 1) & (columns == 2)
    right, left = (rows == 1) & (columns >= 2), (rows == 1) & (columns <= 2)
    assert torch.equal(out, torch.stack((down, up, right, left), dim=2))


@needs_compiler
def test_the_kernel_gives_the_same_bits_on_any_number_of_threads():
    # The input's matrices are an identity's rows: each of its products is one number, so that the bits are the kernel's
    # and not those of the library of matrix products.
    h = 20
    vertical, horizontal = parameters(lstms(16 * h, h, torch.float32))
    with torch.no_grad():
        for i, weight in enumerate((vertical[0], vertical[4], horizontal[0], horizontal[4])):
            weight.copy_(torch.eye(16 * h)[i * 4 * h : (i + 1) * 4 * h])
    x = torch.randn(2, 37, 21, 16 * h, requires_grad=True)
    grad = torch.randn(2, 37, 21, 4 * h)
    outs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 16):
            torch.set_num_threads(threads)
            outs.append(results(bilstm2d(x, vertical, horizontal, backend='compiled'), [x], grad))
    finally:
        torch.set_num_threads(before)
    for other in outs[1:]:
        for a, b in zip(outs[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@needs_compiler
def test_a_second_backward_pass_gives_the_same():
    weights = parameters(lstms(8, 5))
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    out = bilstm2d(x, *weights, backend='compiled').sum()
    for rounds in (1, 2):
        out.backward(retain_graph=True)
        if rounds == 1:
            first = [p.grad.clone() for p in (x, *weights[0], *weights[1])]
    for once, p in zip(first, (x, *weights[0], *weights[1]), strict=True):
        torch.testing.assert_close(p.grad, 2 * once)


@needs_compiler
def test_frozen_weights_and_inputs_get_no_gradient():
    weights = parameters(lstms(8, 5))
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    for w in weights[0][1:]:
        w.requires_grad_(False)
    bilstm2d(x, *weights, backend='compiled').sum().backward()
    assert [w.grad is not None for w in weights[0]] == [True] + [False] * 7
    assert all(w.grad is not None for w in weights[1])


def test_the_environment_names_the_backend(monkeypatch):
    mixer, x = BiLSTM2D(8, 2), torch.randn(1, 3, 4, 8)
    expected = mixer(x)
    monkeypatch.setenv('MMEXT_BILSTM2D_BACKEND', 'fastest')
    with pytest.raises(ValueError, match="backend='fastest'"):
        mixer(x)
    mixer.backend = 'torch'  # a choice in the code goes before it
    torch.testing.assert_close(mixer(x), expected)


def recorded(mixer, sizes):
    """Dynamo's graphs of calls with maps of these sizes; the results are compared."""
    graphs = []

    def record(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(mixer, backend=record, dynamic=True)
    for H, W in sizes:
        x = torch.randn(1, H, W, 24)
        torch.testing.assert_close(compiled(x), mixer(x), rtol=0, atol=0)
    return graphs


@needs_compile
@needs_compiler
def test_torch_compile_sees_one_node():
    mixer = BiLSTM2D(24, 6)
    with torch.no_grad():
        graphs = recorded(mixer, ((8, 9), (11, 7)))
    assert len(graphs) == 1  # no break, no compilation for the second size
    targets = [str(node.target) for node in graphs[0].graph.nodes if node.op == 'call_function']
    assert sum('bilstm2d' in target for target in targets) == 1
    torch._dynamo.reset()
    assert len(recorded(mixer, ((8, 9), (11, 7)))) == 1  # and with gradients


@needs_compiler
def test_saves_a_fifth_of_what_nn_lstm_does():
    saved = {}

    def pack(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    weights = parameters(lstms(64, 16, torch.float32))
    x = torch.randn(1, 24, 40, 64)
    total = {}
    for backend in ('compiled', 'torch'):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = bilstm2d(x, *weights, backend=backend)
        total[backend] = sum(saved.values())
    parameter_bytes = sum(w.nbytes for each in weights for w in each)
    # input and output, four gates and the cells: each gate and the cells are as large as the output
    assert total['compiled'] <= x.nbytes + 6 * out.nbytes + parameter_bytes
    assert total['torch'] > 4 * total['compiled']


@needs_compiler
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.bfloat16, 2**-7), pytest.param(torch.float16, 2**-10, marks=HALF_AUTOCAST.marks)],
)
def test_half_precision_is_that_of_the_products_alone(dtype, tolerance, autocast):
    """The recurrences, however long, add no rounding of the low type to that of the products they begin with.

    They are compared with recurrences in float64 over products rounded to the low type. What is left without autocast
    is the rounding of the result, half of `tolerance`.
    """
    C, h = 12, 8
    weights = [[w.detach() for w in each] for each in parameters(lstms(C, h, torch.float32))]
    x = torch.randn(1, 21, 33, C)
    low = [[w.to(dtype) if w.dim() == 2 and i % 4 == 0 else w for i, w in enumerate(each)] for each in weights]
    inner = torch.cat([low[0][0], low[0][4], low[1][0], low[1][4]])
    products = (x.to(dtype) @ inner.mT).double()
    fed = [[w.double() for w in each] for each in weights]
    for i in range(4):
        fed[i // 2][i % 2 * 4] = torch.eye(16 * h, dtype=torch.float64)[i * 4 * h : (i + 1) * 4 * h]
    expected = bilstm2d(products, *fed, backend='torch')
    if autocast:
        with torch.autocast('cpu', dtype=dtype):
            out = bilstm2d(x, *weights, backend='compiled')
        assert out.dtype == torch.float32
        assert relative_error(out, expected) < 1e-5
    else:
        out = bilstm2d(x.to(dtype), *low, backend='compiled')
        assert out.dtype == dtype
        assert relative_error(out.double(), expected) < tolerance


@needs_compiler
def test_float16_without_autocast():
    """torch 2.1 multiplies no float16 on the CPU: there the products are in float32."""
    mixer, x = BiLSTM2D(12, 5), torch.randn(1, 4, 6, 12)
    weights = [list(rnn.parameters()) for rnn in (mixer.rnn_v, mixer.rnn_h)]
    with torch.no_grad():
        out, exact = bilstm2d(x.half(), *weights, backend='compiled'), bilstm2d(x, *weights, backend='compiled')
    assert out.dtype == torch.float16
    # products and gates are of order one: a few roundings of 2^-11
    assert (out.float() - exact).abs().max() < 2**-8


@needs_compiler
def test_gradients_under_autocast_are_as_good_as_those_of_the_low_type():
    """Against float64: within 2^-6, four roundings of bfloat16 (input, matrix, product, gradient), in the mean."""
    C, h = 12, 8
    weights = [w for each in parameters(lstms(C, h, torch.float32)) for w in each]
    x = torch.randn(2, 9, 13, C, requires_grad=True)
    grad = torch.randn(2, 9, 13, 4 * h)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = bilstm2d(x, weights[:8], weights[8:], backend='compiled')
    actual = results(out, [x, *weights], grad)
    exact = [p.detach().double().requires_grad_() for p in (x, *weights)]
    out = bilstm2d(exact[0], exact[1:9], exact[9:], backend='torch')
    for a, b, p in zip(actual, results(out, exact, grad.double()), (out, x, *weights), strict=True):
        assert a.dtype == torch.float32
        assert a.shape == p.shape
        assert (a - b).norm() < 2**-6 * b.norm()


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF_AUTOCAST])
def test_torch_runs_in_float32_under_cpu_autocast(dtype):
    mixer = BiLSTM2D(8, 2)
    mixer.backend = 'torch'
    weights = [list(rnn.parameters()) for rnn in (mixer.rnn_v, mixer.rnn_h)]
    x = torch.randn(1, 3, 4, 8)
    with torch.autocast('cpu', dtype=dtype):
        assert bilstm2d(x.to(dtype), *weights, backend='torch').dtype == torch.float32
        assert mixer(x).dtype == dtype


@pytest.mark.parametrize('enabled', [False, True])
def test_torch_is_ready_for_a_backward_pass_in_eval_mode(monkeypatch, enabled):
    # cuDNN computes no gradient of an LSTM that ran in eval mode, and frozen stages do
    modes = []
    lstm = torch.lstm

    def spy(*args):
        modes.append(args[6])
        return lstm(*args)

    monkeypatch.setattr(torch, 'lstm', spy)
    mixer = BiLSTM2D(8, 2).eval()
    mixer.backend = 'torch'
    with torch.set_grad_enabled(enabled):
        mixer(torch.randn(1, 3, 4, 8))
    assert modes == [enabled, enabled]


def test_meta():
    weights = parameters(lstms(8, 3, torch.float32))
    meta = [[w.detach().to('meta') for w in each] for each in weights]
    assert bilstm2d(torch.empty(2, 5, 7, 8, device='meta'), *meta).shape == (2, 5, 7, 12)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'x': torch.zeros(3, 4, 8)}, r'x has shape \(3, 4, 8\): expected \[B, H, W, C\]'),
        ({'x': torch.zeros(1, 3, 4, 9)}, r'vertical has shapes .*: expected \[\(12, 9\), \(12, 3\)'),
        ({'vertical': []}, 'vertical has 0 tensors: expected the 8'),
        ({'horizontal': parameters(lstms(8, 4, torch.float32))[0]}, 'horizontal has shapes'),
    ],
)
def test_bad_arguments_are_named(changes, message):
    vertical, horizontal = parameters(lstms(8, 3, torch.float32))
    arguments = {'x': torch.zeros(1, 3, 4, 8), 'vertical': vertical, 'horizontal': horizontal}
    with pytest.raises(ValueError, match=message):
        bilstm2d(**(arguments | changes))


@pytest.fixture
def mixer_on_cuda():
    """A mixer whose tensors are of CUDA and have no data."""
    mixer = BiLSTM2D(24, 8)
    with fake_cuda() as mode:
        yield without_numbers(mixer, mode, 'cuda')
    torch._dynamo.reset()


SIZES_ON_CUDA = ((4, 6), (8, 12), (50, 84))


@needs_fake_cuda
@needs_compile
@pytest.mark.parametrize('autocast', [False, True])
def test_on_cuda_a_compiled_lstm_is_one_node_however_long_it_is(autocast, mixer_on_cuda):
    graphs = []

    def record(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == 'call_function'])
        return graph.forward

    for size in SIZES_ON_CUDA:
        torch._dynamo.reset()
        run = torch.compile(mixer_on_cuda, backend=aot_autograd(fw_compiler=record), fullgraph=True, dynamic=False)
        with torch.no_grad(), torch.autocast('cuda', torch.float16) if autocast else nullcontext():
            out = run(torch.empty(2, *size, 24, device='cuda'))
        assert out.shape == (2, *size, 24)
    assert len({len(graph) for graph in graphs}) == 1
    assert len(graphs[0]) < 60
    assert all(graph.count(torch.ops.mmext_backbones.lstm.default) == 2 for graph in graphs)


@needs_fake_backward
@pytest.mark.parametrize('autocast', [False, True])
def test_its_backward_pass_is_one_node_too(autocast, mixer_on_cuda, monkeypatch):
    """What a recorded network calls, called by itself."""
    monkeypatch.setattr(torch_lstm, 'is_compiling', lambda: True)
    counts = []
    for size in (SIZES_ON_CUDA[0], *SIZES_ON_CUDA):  # the first pass of all makes the leaves of the weights
        x = torch.empty(2, *size, 24, device='cuda', requires_grad=True)
        with CountOperations() as operations:
            with torch.autocast('cuda', torch.float16) if autocast else nullcontext():
                out = mixer_on_cuda(x)
            out.backward(torch.empty_like(out))
        counts.append(operations.count)
        assert (x.grad.shape, x.grad.dtype) == (x.shape, x.dtype)
        assert all(p.grad.shape == p.shape for p in mixer_on_cuda.parameters())
        mixer_on_cuda.zero_grad()
    assert len(set(counts[1:])) == 1
    assert counts[0] < 350


@needs_compile
@pytest.mark.parametrize('narrow', [False, True])
def test_the_node_of_a_compiled_lstm_computes_what_torch_does(narrow):
    """On the CPU, where bfloat16 stands for the narrow type of a GPU."""
    (rnn, _), x = lstms(12, 5, torch.float32), torch.randn(7, 3, 12, requires_grad=True)
    weights, grad = list(rnn.parameters()), torch.randn(7, 3, 10)
    rnn.batch_first = False
    expected = results(rnn(x)[0], [x, *weights], grad)
    narrowed = x.bfloat16() if narrow else x
    out = torch_lstm._LSTM.apply(narrowed, *weights)
    assert out.dtype == narrowed.dtype
    actual = results(out, [x, *weights], grad.to(out.dtype))
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one.float(), other) < (0.05 if narrow else 1e-5)
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = torch.ops.mmext_backbones.lstm(torch.empty(x.shape, dtype=out.dtype), weights)
    assert (fake.shape, fake.dtype, fake.stride()) == (out.shape, out.dtype, out.stride())


@needs_fake_cuda
def test_under_autocast_the_map_is_cast_before_it_is_copied(mixer_on_cuda, monkeypatch):
    """Once, instead of after it was copied for either axis."""
    monkeypatch.setattr(torch, 'lstm', lambda x, state, weights, *options: [x.new_empty(*x.shape[:2], 16)])
    x, moved = torch.empty(2, 6, 10, 24, device='cuda'), []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            view = function.is_view or function.name() == 'aten::_unsafe_view'
            if isinstance(out, torch.Tensor) and out.numel() == x.numel() and not view:
                moved.append((function.name(), out.dtype))
            return out

    weights = mixer_on_cuda.rnn_v.tensors(), mixer_on_cuda.rnn_h.tensors()
    with torch.autocast('cuda', torch.float16), Record():
        bilstm2d(x, *weights, backend='torch')
    assert [dtype for _, dtype in moved] == [torch.float16] * 2  # the cast, and a copy of the columns
    assert moved[0][0] == 'aten::_to_copy'
