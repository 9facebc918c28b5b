"""The fused forms of layers, against the same layers as calls of their modules."""

import copy
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.utils._python_dispatch import TorchDispatchMode

from dev.step_traffic import as_on_a_gpu
from mmext_backbones.analysis.estimate import without_numbers
from mmext_backbones.backbones.maxvit import Stem
from mmext_backbones.layers import (
    BiLSTM2D,
    ELSAAttention,
    MBConv,
    Mlp,
    PartitionAttention,
    PatchMerging,
    TransformerBlock,
    WindowAttention,
    fused,
)
from mmext_backbones.layers.squeeze_excite import SqueezeExcite
from tests.conftest import randomize
from tests.torch_features import HALF_AUTOCAST, needs_compile, needs_fake_backward

C = 32


def block_of_mlp(**options):
    """A block whose mixer is nothing, and no class that has a fused form."""
    return TransformerBlock(nn.Identity(), C, mlp=Mlp(C, **options))


# name -> block, and the shape of its input
BLOCKS = {
    'mlp': (block_of_mlp, (2, 5, 7, C)),
    'mlp_tanh': (lambda: block_of_mlp(gelu='tanh'), (2, 5, 7, C)),
    'patch_merging': (lambda: PatchMerging(C), (2, 5, 7, C)),
    'mbconv': (lambda: MBConv(C, C, 1), (2, 5, 7, C)),
    'mbconv_strided': (lambda: MBConv(C, 64, 2), (2, 6, 8, C)),  # padded at the end only
    'mbconv_strided_odd': (lambda: MBConv(C, 64, 2), (2, 5, 8, C)),
    'stem': (lambda: Stem(3, C), (2, 3, 14, 11)),
}


def by_modules(block):
    """A copy that calls each module, as hooks make it do."""
    block = copy.deepcopy(block)
    for module in block.modules():
        module.register_forward_hook(lambda *_: None)
    return block


FORMS = {'_RecomputeBackward', '_NormMlpBackward', 'ProductConvCompiledBackward'}


def forms_in(out):
    """The fused functions that a tensor comes from."""
    nodes, names = [out.grad_fn], set()
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [following for following, _ in node.next_functions if following is not None]
    return names & FORMS


def gradients(run, x, block=None):
    block = run if block is None else block
    block.zero_grad()
    x = x.clone().requires_grad_()
    out = run(x)
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape))
    return [out.detach(), x.grad, *(p.grad for p in block.parameters()), *block.buffers()]


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', BLOCKS)
def test_agrees_with_the_modules(name, training):
    build, shape = BLOCKS[name]
    torch.manual_seed(0)
    block = randomize(build()).double().train(training)
    plain = by_modules(block)
    x = torch.randn(shape, dtype=torch.float64)
    assert forms_in(block(x))
    assert not forms_in(plain(x))
    expected = gradients(plain, x)
    for actual, wanted in zip(gradients(block, x), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(block(x), plain(x), rtol=1e-9, atol=1e-12)
        assert block(x).stride()[-1] == 1  # channels last, as the next block wants them


# name -> token mixer, and what it is called with besides the map
MIXERS = {
    'windows': (lambda: WindowAttention(C, 2, shift_size=3), ()),
    'elsa': (lambda: ELSAAttention(C, 2), ()),
    'grid': (lambda: PartitionAttention(C, 2, grid=True), ((7, 7),)),
    'lstm': (lambda: BiLSTM2D(C, 8), ()),
}


@pytest.mark.parametrize('name', MIXERS)
def test_sums_joined_to_products_agree_with_sums(name):
    mixer, context = MIXERS[name]
    torch.manual_seed(0)
    block = randomize(TransformerBlock(mixer(), C)).double()
    x = torch.randn(2, 9, 5, C, dtype=torch.float64).transpose(1, 2)  # not contiguous
    heard, plain = {}, by_modules(block)
    for key in ('attn', 'mlp'):
        getattr(plain, key).register_forward_hook(lambda module, args, out, key=key: heard.update({key: out}))
    expected = gradients(lambda x: plain(x, *context), x, plain)
    for actual, wanted in zip(gradients(lambda x: block(x, *context), x, block), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)
    # a hook is given the branch, not the sum
    torch.testing.assert_close(x + heard['attn'] + heard['mlp'], expected[0])
    with torch.no_grad():
        before = x.clone()
        torch.testing.assert_close(block(x, *context), expected[0], rtol=1e-9, atol=1e-12)
        assert torch.equal(x, before)
    with torch.autocast('cpu', torch.bfloat16):
        narrow = block.float()(x.float(), *context)
        assert narrow.dtype == torch.float32  # the sum is not narrowed
        torch.testing.assert_close(narrow, plain.float()(x.float(), *context), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norms_in_eval_are_folded_into_convolutions(norm_eval):
    block = randomize(MBConv(C, 64, 2))
    block.train(not norm_eval)
    x = torch.randn(2, 5, 8, C)

    def norms():
        with torch.profiler.profile() as profile:
            block(x)
        return sum(event.count for event in profile.key_averages() if 'norm' in event.key)

    assert norms() > 0  # a gradient is wanted
    with torch.inference_mode():
        assert (norms() == 0) is norm_eval  # statistics of the batch are not known before it


@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF_AUTOCAST])
def test_folded_norms_under_autocast(dtype):
    block = randomize(MBConv(C, 64, 2)).eval()
    x = torch.randn(2, 6, 7, C)
    with torch.no_grad():
        exact = block.double()(x.double())
        plain = by_modules(block.float())
        with torch.autocast('cpu', dtype):
            folded, called = block(x), plain(x)
    assert folded.dtype == called.dtype == dtype
    assert torch.dist(folded.double(), exact) <= 1.5 * torch.dist(called.double(), exact)


class Record(TorchDispatchMode):
    """How often each operator runs."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[function.name()] += 1
        return function(*args, **(kwargs or {}))


@needs_fake_backward
@pytest.mark.parametrize('rate', [0.0, 0.5])
@pytest.mark.parametrize('recompute', [True, False])
def test_on_a_gpu_norms_and_gelu_are_one_operator_a_direction(recompute, rate):
    """Whether paths are dropped, and maps kept, or not; what PyTorch does in passes of its own is gone."""
    block = TransformerBlock(WindowAttention(C, 2), C, drop_path_rate=rate)
    with as_on_a_gpu() as mode, fused.recomputing(recompute):
        block = without_numbers(block, mode, 'cuda').train()
        x = torch.empty(2, 9, 5, C, device='cuda', requires_grad=True)
        with Record() as record, torch.autocast('cuda', torch.float16):
            out = block(x)
            out.backward(torch.empty_like(out))
        shapes = out.shape, x.grad.shape
    assert shapes == (x.shape, x.shape)
    assert record.names['mmext_backbones::layer_norm'] == record.names['mmext_backbones::layer_norm_backward'] == 2
    assert record.names['mmext_backbones::gelu_backward_sum_'] == 1
    assert not {name for name in record.names if 'native_layer_norm' in name or name.startswith('aten::gelu_backward')}


def test_dropped_paths_stay_dropped():
    block = randomize(TransformerBlock(WindowAttention(C, 2), C, drop_path_rate=0.9)).train()
    x = torch.randn(64, 3, 3, C)
    assert sum(torch.equal(a, b) for a, b in zip(block(x), x, strict=True)) > 32  # 0.81 of 64 expected


@pytest.mark.parametrize('name', BLOCKS)
def test_hooks_are_called(name):
    build, shape = BLOCKS[name]
    block, called = build(), set()
    for key, module in block.named_modules():
        module.register_forward_hook(lambda *_, key=key: called.add(key))
    block(torch.randn(shape))
    uncalled = {key for key, module in block.named_modules() if key not in called}
    assert not uncalled


@pytest.mark.parametrize(
    'change',
    [
        lambda m: nn.SyncBatchNorm.convert_sync_batchnorm(m),
        lambda m: setattr(m.norm1, 'momentum', None),
        lambda m: torch.nn.utils.parametrizations.weight_norm(m.conv1),
        lambda m: setattr(m, 'conv3', nn.Sequential(nn.Conv2d(4 * C, C, 1))),
        lambda m: setattr(m, 'conv3', nn.Sequential(m.conv3)),
        lambda m: setattr(m, 'se', NoGate(4 * C, 8)),
        lambda m: m.se.register_forward_pre_hook(lambda *_: None),
        lambda m: m.se.fc1.register_full_backward_hook(lambda *_: None),
        lambda m: setattr(m.conv2, 'forward', m.conv2.forward),
        lambda m: setattr(m.se, 'forward', m.se.forward),
        lambda m: setattr(m.se, '_compiled_call_impl', m.se._call_impl),  # as m.se.compile() does
    ],
    ids=[
        'sync_batch_norm',
        'cumulative_average',
        'parametrised',
        'other_class',
        'in_a_container',
        'subclass',
        'hook',
        'hook_inside',
        'patched',
        'patched_container',
        'compiled',
    ],
)
def test_what_is_changed_is_called(change):
    block, x = randomize(MBConv(C, C, 1)), torch.randn(2, 5, 7, C)
    assert forms_in(block(x))
    change(block)
    out = block(x)
    assert not forms_in(out)
    torch.testing.assert_close(out, MBConv.forward.__wrapped__(block, x), rtol=0, atol=0)


@pytest.mark.parametrize(
    'register',
    [
        torch_modules.register_module_forward_pre_hook,
        torch_modules.register_module_forward_hook,
        torch_modules.register_module_full_backward_pre_hook,
        torch_modules.register_module_full_backward_hook,
    ],
)
def test_global_hooks_are_called(register):
    block, x = block_of_mlp(), torch.randn(2, 5, 7, C)
    called = []
    handle = register(lambda module, *_: called.append(module))
    try:
        block(x).sum().backward()
    finally:
        handle.remove()
    assert set(called) >= {block.norm2, block.mlp, block.mlp.fc1, block.mlp.act, block.mlp.fc2}
    assert forms_in(block(x))


PARTS = (
    'norm1',
    'attn',
    'attn.qkv',
    'attn.filter_conv',
    'attn.proj',
    'norm2',
    'mlp',
    'mlp.fc1',
    'mlp.act',
    'drop_path',
)


@pytest.mark.parametrize('rate', [0.0, 0.5])
@pytest.mark.parametrize('name', MIXERS)
def test_a_hook_is_given_what_the_module_takes_and_returns(name, rate):
    """On one module at a time, while all others stay as they are."""
    mixer, context = MIXERS[name]
    block = randomize(TransformerBlock(mixer(), C, drop_path_rate=rate)).double()
    x = torch.randn(2, 9, 5, C, dtype=torch.float64)

    def heard(parts):
        """The output, and of each part what it took and returned in each of its calls."""
        calls = {part: [] for part in parts}
        handles = [
            block.get_submodule(part).register_forward_hook(
                lambda _, args, out, part=part: calls[part].append((*args, out))
            )
            for part in parts
        ]
        torch.manual_seed(1)
        out = block(x, *context)
        for handle in handles:
            handle.remove()
        return out, calls

    modules = dict(block.named_modules())
    parts = [part for part in PARTS if part in modules]
    expected, calls = heard(parts)
    for part in parts:
        out, alone = heard([part])
        torch.testing.assert_close(out, expected)
        assert len(alone[part]) == len(calls[part]) == (2 if part == 'drop_path' else 1)
        torch.testing.assert_close(alone[part], calls[part])


class NoGate(SqueezeExcite):
    def forward(self, x):
        return x


class HalvedAttention(WindowAttention):
    def forward(self, x):
        return super().forward(x) / 2


class MirroredBias(WindowAttention):
    def bias(self):
        return super().bias().flip(1)


class HalvedMlp(Mlp):
    def forward(self, x):
        return super().forward(x) / 2


OTHERS = {
    'forward_of_attention': lambda block: setattr(block, 'attn', HalvedAttention(C, 2)),
    'method_of_attention': lambda block: setattr(block, 'attn', MirroredBias(C, 2)),
    'forward_of_mlp': lambda block: setattr(block, 'mlp', HalvedMlp(C)),
    'other_attention': lambda block: setattr(block, 'attn', nn.Linear(C, C)),
    'other_mlp': lambda block: setattr(block, 'mlp', nn.Sequential(nn.Linear(C, C), nn.GELU())),
    'other_act': lambda block: setattr(block.mlp, 'act', nn.SiLU()),
    'other_norm': lambda block: setattr(block, 'norm1', nn.RMSNorm(C) if hasattr(nn, 'RMSNorm') else nn.Identity()),
    'norm_without_weights': lambda block: setattr(block, 'norm2', nn.LayerNorm(C, elementwise_affine=False)),
    'other_drop_path': lambda block: setattr(block, 'drop_path', nn.Identity()),
    'patched_forward': lambda block: setattr(block.mlp, 'forward', lambda x: x / 2),
}


@pytest.mark.parametrize('name', OTHERS)
def test_other_classes_are_called_in_a_block(name):
    block, x = TransformerBlock(WindowAttention(C, 2), C), torch.randn(2, 5, 7, C, dtype=torch.float64)
    OTHERS[name](block)
    block = randomize(block).double()
    out = block(x)
    torch.testing.assert_close(out, TransformerBlock.forward.__wrapped__(block, x), rtol=1e-10, atol=1e-10)
    assert forms_in(out)  # of what is left


def test_a_block_of_a_subclass_is_fused_like_the_block():
    """As sharding (`fully_shard`) makes one of each block, with hooks on the block itself."""
    block, x = TransformerBlock(WindowAttention(C, 2), C), torch.randn(2, 5, 7, C)
    expected = block(x)
    block.__class__ = type('Sharded', (TransformerBlock,), {})
    block.register_forward_pre_hook(lambda *_: None)
    out = block(x)
    assert forms_in(out) == {'_RecomputeBackward', '_NormMlpBackward'}
    assert torch.equal(out, expected)


def test_dropout_is_not_skipped():
    block = block_of_mlp(drop_rate=0.5)
    x = torch.randn(2, 5, 7, C)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def built(name):
    build, shape = BLOCKS[name]
    return randomize(build()).eval(), torch.randn(shape)


@needs_compile
@pytest.mark.parametrize('name', ['mlp', 'mbconv_strided'])
def test_exporters_see_the_modules(name):
    block, x = built(name)
    with torch.no_grad():
        expected = block(x)
        exported = torch.export.export(block, (x,))
        assert 'mmext_backbones' not in str(exported.graph)
        torch.testing.assert_close(exported.module()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', BLOCKS)
def test_the_tracer_sees_the_modules(name):
    block, x = built(name)
    with torch.no_grad():
        expected = block(x)
        traced = torch.jit.trace(block, x)
        torch.testing.assert_close(traced(x), expected, rtol=1e-4, atol=1e-5)


def test_function_transforms_see_the_modules():
    block = block_of_mlp()
    parameters = dict(block.named_parameters())
    x = torch.randn(3, 5, C)

    def loss(parameters, x):
        return torch.func.functional_call(block, parameters, (x,)).square().sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    total = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    for actual, expected in zip(each.values(), total, strict=True):
        torch.testing.assert_close(actual.sum(0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('name', 'maps'),
    [
        ('mlp', 1 + 1 + 4),  # x, x plus its norm, and the hidden map, in maps of C channels
        ('patch_merging', 1),  # the joined neighbours
        ('mbconv', 1 + 4 + 4),  # x and the two hidden maps
    ],
)
def test_what_is_kept(name, maps):
    build, _ = BLOCKS[name]
    block, x = build(), torch.randn(1, 32, 32, C, requires_grad=True)

    def kept(block):
        parameters = {p.untyped_storage().data_ptr() for p in [*block.parameters(), *block.buffers()]}
        storages = {}

        def pack(t):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = block(x)
        return sum(s.nbytes() for key, s in storages.items() if key not in parameters) / (4 * x.numel()), out

    assert maps <= kept(block)[0] <= maps + 0.2  # and the statistics of norms
    assert kept(by_modules(block))[0] >= 1.7 * maps
