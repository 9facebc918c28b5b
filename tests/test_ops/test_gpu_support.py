"""Which kernels in Triton a device takes, on devices that are not there, and how many of them there are."""

import importlib
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmext_backbones.ops import gpu_compiling, gpu_support, triton_start, window_attention
from mmext_backbones.ops.caching import load_once
from mmext_backbones.ops.elsa import gpu as elsa_gpu
from mmext_backbones.ops.layer_norm import gpu as norm_gpu
from mmext_backbones.ops.norm_gelu import gpu as gelu_gpu
from mmext_backbones.ops.window_attention import gpu as windows_gpu
from tests.torch_features import needs_fake_cuda, needs_target

CUDA = torch.device('cuda', 0)
OPERATORS = {'elsa': elsa_gpu, 'window_attention': windows_gpu}


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes the kernels believe in a GPU of a compute capability; nothing is launched."""
    for name in ('MMEXT_BACKEND', 'MMEXT_ELSA_BACKEND', 'MMEXT_WINDOW_ATTENTION_BACKEND'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu_support, '_refused', {})
    monkeypatch.setattr(gpu_support, 'no_triton', lambda: None)
    monkeypatch.setattr(gpu_support, 'is_interpreted', lambda: False)
    monkeypatch.setattr(gpu_support, 'cannot_start', lambda device: None)
    monkeypatch.setattr(windows_gpu, '_largest_block_on', lambda device: windows_gpu.MAX_BLOCK)

    def believe(*capability):
        for module in (gpu_support, windows_gpu):
            monkeypatch.setattr(module, 'capability_of', lambda device: capability)

    return believe


class Called(TorchDispatchMode):
    """The names of the operators of the dispatcher that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.name())
        return function(*args, **(kwargs or {}))


def attends_by_kernel(window=7, head_dim=32, dtype=torch.float16, **form):
    """Whether window attention on CUDA tensors without data takes the kernel in Triton."""
    N = window**2
    with FakeTensorMode(), Called() as called:
        qkv = torch.empty(1, window, window, 3 * head_dim, device='cuda', dtype=dtype, requires_grad=True)
        bias = torch.empty(1, N, N, device='cuda')
        window_attention(qkv, bias, num_heads=1, window_size=(window, window), scale=1.0, **form)
    return 'mmext_backbones::window_attention_triton' in called.names


# --------------------------------------------------------------------------------------------------------------------
# Types and devices


@pytest.mark.parametrize('name', OPERATORS)
def test_bfloat16_needs_a_gpu_that_multiplies_it(name, on_gpu):
    why_not = OPERATORS[name].why_not
    on_gpu(7, 5)
    assert 'compute capability 8.0 for torch.bfloat16; cuda:0 has 7.5' in why_not(CUDA, torch.bfloat16)
    assert (why_not(CUDA, torch.float16) is None) == (name == 'elsa')  # whose kernels have no products
    on_gpu(8, 0)
    for dtype in gpu_support.DTYPES:
        assert why_not(CUDA, dtype) is None
    assert 'not torch.float64' in why_not(CUDA, torch.float64)
    on_gpu(6, 1)
    assert 'cuda:0 has 6.1' in why_not(CUDA, torch.float32)


@needs_fake_cuda
def test_a_kernel_that_was_found_wrong_is_not_taken_again(on_gpu):
    on_gpu(9, 0)
    assert attends_by_kernel()
    reason = 'its gradients are wrong on this GPU'
    assert gpu_support.refuse('window_attention', torch.float16, CUDA, reason)
    assert not gpu_support.refuse('window_attention', torch.float16, CUDA, 'again')
    assert not attends_by_kernel()
    with pytest.raises(RuntimeError, match=f"backend='gpu': {reason}"):
        attends_by_kernel(backend='gpu')
    # others run on
    assert attends_by_kernel(dtype=torch.bfloat16)
    assert windows_gpu.why_not(torch.device('cuda', 1), torch.float16) is None
    assert elsa_gpu.why_not(CUDA, torch.float16) is None


@needs_fake_cuda
def test_a_backward_pass_without_registers_is_left_to_pytorch(on_gpu, monkeypatch):
    asked = []

    def spills(*arguments):
        asked.append(arguments)
        return arguments[-1]

    on_gpu(8, 0)
    monkeypatch.setattr(windows_gpu, 'spills', spills)
    assert not attends_by_kernel()
    with torch.no_grad():
        assert attends_by_kernel()
    assert asked == [((8, 0), torch.float16, 32, 49, trained) for trained in (True, False)]
    assert attends_by_kernel(backend='gpu')  # who asks for it gets it
    monkeypatch.setenv('MMEXT_BACKEND', 'gpu')
    assert attends_by_kernel()


def test_missing_and_old_triton_are_named(monkeypatch):
    no_triton = gpu_support.no_triton.__wrapped__
    monkeypatch.setitem(sys.modules, 'triton', None)
    assert 'Triton cannot be imported' in no_triton()
    monkeypatch.setitem(sys.modules, 'triton', type(sys)('triton'))
    sys.modules['triton'].__version__ = '2.1.0'
    monkeypatch.setattr(triton_start, 'find_spec', lambda name: None)
    assert no_triton() == 'Triton 2.1.0 is too old: the kernels are for 3.0 and newer'


# --------------------------------------------------------------------------------------------------------------------
# Eight threads at first use


def at_once(function, threads=8):
    """The results of as many threads that begin together."""
    barrier = threading.Barrier(threads)

    def run(_):
        barrier.wait()
        return function()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def test_what_is_loaded_is_loaded_once():
    runs = []

    @load_once
    def load(name):
        runs.append(name)
        time.sleep(0.05)
        return object()

    first, *others = at_once(lambda: load('a'))
    assert all(each is first for each in others)
    assert load('b') is not first
    assert runs == ['a', 'b']


def test_what_fails_to_load_is_tried_again():
    attempts = iter([OSError('full'), None])

    @load_once
    def load():
        if (error := next(attempts)) is not None:
            raise error
        return 'loaded'

    with pytest.raises(OSError, match='full'):
        load()
    assert load() == 'loaded'


@needs_target
@pytest.mark.parametrize('name', OPERATORS)
def test_the_kernels_are_loaded_by_eight_threads(name, monkeypatch):
    pytest.importorskip('triton')
    module = OPERATORS[name]
    package = importlib.import_module(module.__package__)
    kept = module.kernels()
    monkeypatch.setitem(sys.modules, kept.__name__, kept)  # put back after the test
    monkeypatch.setattr(package, 'gpu_kernels', kept)
    del sys.modules[kept.__name__], package.gpu_kernels
    module.kernels.cache_clear()
    gpu_support.no_triton.cache_clear()
    gpu_support.is_interpreted.cache_clear()
    try:
        first, *others = at_once(lambda: (module.why_not(torch.device('cpu'), torch.float32), module.kernels()))
        assert all(each == first for each in others)
        assert first[1] is not kept
    finally:
        module.kernels.cache_clear()


# --------------------------------------------------------------------------------------------------------------------
# How many kernels are compiled


@pytest.fixture
def compilations(monkeypatch, on_gpu):
    """The keys of the kernels that Triton would compile for a GPU of compute capability 9.0; none is."""
    triton = pytest.importorskip('triton')
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Driver:
        def get_current_device(self):
            return 0

        def get_current_stream(self, device):
            return 0

        def get_current_target(self):
            return GPUTarget('cuda', 90, 32)

    keys = set()

    def count(*, key, repr, **_):
        keys.add((repr.partition('[')[0], str(key)))
        return True  # do not compile

    monkeypatch.setattr(driver, '_active' if hasattr(driver, '_active') else 'active', Driver())
    hooks, name = (triton.knobs.runtime, 'jit_cache_hook') if hasattr(triton, 'knobs') else (
        triton.JITFunction, 'cache_hook')  # fmt: skip
    monkeypatch.setattr(hooks, name, count)
    monkeypatch.setattr(windows_gpu, 'why_not', lambda *_: None)
    on_gpu(9, 0)
    for module in (*OPERATORS.values(), norm_gpu, gelu_gpu):
        if module is not gelu_gpu and not isinstance(module.kernels().forward, triton.JITFunction):
            pytest.skip('the interpreter compiles nothing')
        for kernel in ('forward', 'backward', 'backward_values', 'backward_logits', 'backward_static'):
            if hasattr(module.kernels(), kernel):  # what earlier launches left behind
                made = vars(getattr(module.kernels(), kernel))
                made.get('device_caches', made.get('cache')).clear()
    return keys


def attend(heads, size, window, shift=0, grid=False, padded=True):
    """Forward and backward of window attention on a map without data."""
    qkv = torch.empty(1, *size, 3 * 32 * heads, device='meta', dtype=torch.float16)
    bias = torch.empty(heads, window[0] * window[1], window[0] * window[1], device='meta')
    padding = torch.empty(3 * 32 * heads, device='meta') if padded else None
    options = heads, window, 0.2, shift, grid
    out = windows_gpu._forward(qkv, bias, padding, *options)
    windows_gpu._backward(out, qkv, bias, padding, *options)


SIZES = [(h, w) for h in range(320, 577, 32) for w in range(h, 577, 37)][:60]


@needs_target
def test_windows_that_grow_with_the_image_take_few_kernels(compilations):
    """The authors' MaxViT for detection: windows of 10 x 10 to 18 x 18, of which 16 x 16 tokens fit."""
    used = set()
    for height, width in SIZES:
        window = -(-height // 32), -(-width // 32)
        if window[0] * window[1] > windows_gpu.MAX_TOKENS:
            continue
        used.add(window)
        for stage in range(4):
            size = -(-height // (4 * 2**stage)), -(-width // (4 * 2**stage))
            for grid in (False, True):
                attend(2 * 2**stage, size, window, grid=grid, padded=False)
    assert len(used) > 15
    # both directions, windows and grid, with padding and without; blocks of 128 and of 256 tokens, 12 x 12 and 16 x 16
    assert 0 < len(compilations) <= 2 * 2 * 2 * 4


@needs_target
def test_swin_compiles_the_same_kernels_for_all_stages_and_sizes(compilations):
    for height, width in SIZES:
        for stage in range(4):
            size = -(-height // (4 * 2**stage)), -(-width // (4 * 2**stage))
            for shift in (0, 3):
                attend(3 * 2**stage, size, (7, 7), shift)
    # both directions, shifted and not, with padding and without
    assert 0 < len(compilations) <= 8


@needs_target
def test_elsa_compiles_four_kernels_for_all_stages_and_sizes(compilations):
    for height, width in SIZES:
        for stage in range(4):
            heads, size = 3 * 2**stage, (-(-height // (4 * 2**stage)), -(-width // (4 * 2**stage)))
            v = torch.empty(1, *size, 32 * heads, device='meta', dtype=torch.float16)
            logits = torch.empty(1, *size, 49 * heads, device='meta', dtype=torch.float16)
            add = torch.empty(32 * heads, 7, 7, device='meta')
            out, lse = elsa_gpu._forward(v, logits, add, heads, 7)
            elsa_gpu._backward(out, v, logits, lse, add, heads, 7, [True] * 3)
    assert len(compilations) == 4


# --------------------------------------------------------------------------------------------------------------------
# What is compiled before it is launched


@needs_target
@pytest.mark.parametrize(('shift', 'grid', 'padded'), [(0, False, True), (3, False, True), (0, True, False)])
def test_what_is_compiled_ahead_is_what_a_network_launches(shift, grid, padded, compilations, monkeypatch):
    monkeypatch.setattr(gpu_compiling, '_seen', set())
    qkv = torch.empty(2, 15, 16, 3 * 32 * 3, device='meta', dtype=torch.float16, requires_grad=True)
    bias, padding = torch.empty(3, 49, 49, device='meta'), torch.empty(3 * 32 * 3, device='meta') if padded else None
    for _ in range(2):
        windows_gpu._compile_ahead(qkv, bias, padding, 3, (7, 7), 0.2, shift, grid)
    ahead = set(compilations)
    compilations.clear()
    for size in ((15, 16), (29, 40)):
        attend(3, size, (7, 7), 0, grid, padded)
        attend(6, size, (7, 7), 0 if not padded else 3, not grid if not padded else False, padded)
    assert compilations == ahead
    assert len(ahead) == 4


@needs_target
def test_without_gradients_only_the_forward_is_compiled_ahead(compilations, monkeypatch):
    monkeypatch.setattr(gpu_compiling, '_seen', set())
    v = torch.empty(2, 15, 16, 96, device='meta', dtype=torch.float16)
    logits, add = torch.empty(2, 15, 16, 147, device='meta', dtype=torch.float16), torch.empty(96, 7, 7, device='meta')
    elsa_gpu._compile_ahead(v, logits, add, 3, 7)
    assert {name for name, _ in compilations} == {'forward'}
    elsa_gpu._compile_ahead(v, logits.requires_grad_(), add, 3, 7)
    assert {name for name, _ in compilations} == {'forward', 'backward_logits'}


class Compiling:
    """A kernel that takes a while to compile: in the threads of Triton's mode where that is on."""

    def __init__(self, seconds, error=None):
        self.seconds, self.error, self.calls = seconds, error, []

    def compile(self):
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error

    def warmup(self, *args, grid, **options):
        self.calls.append(('compiled', grid, args, options))
        if SideBySide.now is None:
            return self.compile()
        return SideBySide.now.futures.append(SideBySide.now.executor.submit(self.compile))

    def __getitem__(self, grid):
        return lambda *args, **options: self.calls.append(('launched', grid, args, options))


class SideBySide:
    """In place of Triton's AsyncCompileMode."""

    now = None

    def __init__(self, executor):
        self.executor, self.futures = executor, []

    def __enter__(self):
        SideBySide.now = self

    def __exit__(self, *exc):
        SideBySide.now = None
        for future in self.futures:
            future.result()


@pytest.fixture(params=['side by side', 'one after another'])
def compiling(request, monkeypatch):
    """Compiles what kernels there are, and returns what went wrong; with patience for a moment only."""
    triton = pytest.importorskip('triton')
    monkeypatch.setattr(gpu_compiling, '_seen', set())
    monkeypatch.setattr(gpu_compiling, 'PATIENCE', 0.1)
    monkeypatch.setattr(gpu_compiling, 'AGAIN', 0.2)
    if request.param == 'side by side':
        monkeypatch.setattr(triton, 'AsyncCompileMode', SideBySide, raising=False)
    else:
        monkeypatch.delattr(triton, 'AsyncCompileMode', raising=False)

    def compile_all(key, *kernels):
        def run():
            for kernel in kernels:
                gpu_compiling.launch(kernel, (2, 3), (X,), (4, 5), {'BLOCK': 6})

        return gpu_compiling.compile_ahead('elsa', key, run)

    return compile_all


X = torch.zeros(1)


def test_a_long_compilation_says_how_many_kernels_are_compiled(compiling, caplog):
    with caplog.at_level('WARNING', logger='mmext_backbones'):
        assert compiling('a', Compiling(0), Compiling(0.2), Compiling(0.22)) == []
        lines = [record.getMessage().partition(': ')[2] for record in caplog.records]
        assert lines[0] == '1 of 3 (elsa)'
        assert set(lines[1:]) <= {f'{i} of 3 (elsa)' for i in (1, 2, 3)}
        assert 'once for this GPU and version of Triton' in caplog.records[0].getMessage()
        caplog.clear()
        assert compiling('a', Compiling(1)) == []  # is compiled
        assert compiling('b', Compiling(0)) == []
    assert not caplog.records


def test_a_kernel_that_cannot_be_compiled_ends_nothing(compiling):
    error = RuntimeError('ptxas does not know this GPU')
    last = Compiling(0)
    assert compiling('a', Compiling(0, error), last) == [error]
    assert len(last.calls) == 1


def test_launches_after_it_launch(compiling):
    kernel = Compiling(0)
    compiling('once', kernel)
    gpu_compiling.launch(kernel, (2, 3), (X,), (4, 5), {'BLOCK': 6})
    assert kernel.calls == [(how, (2, 3), (X, 4, 5), {'BLOCK': 6}) for how in ('compiled', 'launched')]


def test_what_fails_before_a_launch_ends_nothing(monkeypatch):
    pytest.importorskip('triton')
    monkeypatch.setattr(gpu_compiling, '_seen', set())
    kernel = Compiling(0)

    def run():
        gpu_compiling.launch(kernel, (1,), (X,), (), {})
        raise RuntimeError('no memory')

    [error] = gpu_compiling.compile_ahead('elsa', 'once', run)
    assert str(error) == 'no memory'
    assert len(kernel.calls) == 1  # what was asked for until then
    gpu_compiling.launch(kernel, (1,), (X,), (), {})
    assert kernel.calls[-1][0] == 'launched'


@needs_target
def test_norms_compile_two_kernels_for_a_width_and_gelu_one_for_all(compilations):
    for C in (96, 112, 128):
        for rows in (1, 70, 4096):
            x = torch.empty(rows, C, device='meta')
            y = norm_gpu._forward(x, x[0], x[0], 1e-5, torch.float16)
            norm_gpu._backward(y, x, x[0], x[0], x, 1e-5, True)
    assert len(compilations) == 2
    compilations.clear()
    for C in (384, 768, 1536):
        for rows in (1, 70, 4096):
            x = torch.empty(rows, C, device='meta', dtype=torch.float16)
            gelu_gpu._backward(x, x, False, True)
    assert len(compilations) == 1


@needs_target
def test_what_a_norm_compiles_ahead_is_what_a_training_step_launches(compilations, monkeypatch):
    monkeypatch.setattr(gpu_compiling, '_seen', set())
    x = torch.empty(7, 96, device='meta')
    norm_gpu._compile_ahead(x, x[0], x[0], torch.float16, True)
    ahead = set(compilations)
    compilations.clear()
    y = norm_gpu._forward(x, x[0], x[0], 1e-5, torch.float16)
    for skip in (None, x):
        norm_gpu._backward(y, x, x[0], x[0], skip, 1e-5, True)
    assert compilations == ahead
    assert len(ahead) == 3
    norm_gpu._compile_ahead(x, x[0], x[0], torch.bfloat16, None)
    assert {name for name, _ in compilations - ahead} == {'forward'}
