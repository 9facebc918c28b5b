"""A GPU where Triton cannot start: the operators say so once, and compute in PyTorch. No GPU is needed.

What Triton would raise is raised in its place, or by its own builder; the operators run on the CPU.
"""

import errno
import functools
import importlib
import logging
import os
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from mmext_backbones.ops import elsa, gpu_support, window_attention
from mmext_backbones.ops import triton_start as start
from mmext_backbones.ops.elsa import gpu as elsa_gpu
from mmext_backbones.ops.layer_norm import gpu as norm_gpu
from mmext_backbones.ops.norm_gelu import gpu as gelu_gpu
from mmext_backbones.ops.triton_start import Refused, cannot_start, or_in_torch
from mmext_backbones.ops.window_attention import gpu as windows_gpu
from tests.torch_features import needs_target

CUDA = torch.device('cuda', 0)
start_devices = start.DEVICES


@pytest.fixture(autouse=True)
def _anew(monkeypatch):
    """As a process that has not asked yet."""
    monkeypatch.setattr(start, '_given_up', {})
    monkeypatch.setattr(start, '_told', set())
    monkeypatch.setattr(start, 'DEVICES', ('cuda', 'cpu'))
    asked = (start._start_failure, start.no_triton, start.is_interpreted)
    for function in asked:
        function.cache_clear()
    yield
    for function in asked:
        function.cache_clear()


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def leaves(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def run_elsa():
    """Output and gradients through the operators of Triton, and by the reference."""
    v, logits, add = leaves((2, 8, 5, 6), (2, 18, 5, 6), (8, 3, 3))
    out = elsa_gpu.elsa_gpu(v, logits, add, 2, 3)
    return with_gradients(
        out, elsa(v, logits, None, add, num_heads=2, kernel_size=3, backend='reference'), v, logits, add
    )


def run_windows(shift_size=1, padding=True):
    qkv, bias, padding = (
        leaves((2, 5, 6, 12), (2, 9, 9), (12,)) if padding else (*leaves((2, 5, 6, 12), (2, 9, 9)), None)
    )
    options = {'num_heads': 2, 'window_size': (3, 3), 'scale': 0.7, 'shift_size': shift_size, 'padding': padding}
    out = windows_gpu.window_attention_gpu(qkv, bias, **options)
    expected = window_attention(qkv, bias, **options, backend='reference')
    return with_gradients(out, expected, *[x for x in (qkv, bias, padding) if x is not None])


def with_gradients(out, expected, *inputs):
    grad = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [(each, *torch.autograd.grad(each, inputs, grad)) for each in (out, expected)]


def assert_right(results):
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


# What a first launch raises, and what the line has to name
FAILURES = {
    'no compiler': (RuntimeError('Failed to find C compiler. Please specify via CC environment variable.'), 'gcc'),
    'CC is nothing': (FileNotFoundError(errno.ENOENT, 'No such file or directory', 'no-such-cc'), 'C compiler'),
    'a compiler that fails': (subprocess.CalledProcessError(1, ['gcc']), 'another one in the environment variable CC'),
    'cache not writable': (PermissionError(errno.EACCES, 'Permission denied', '/root/.triton'), 'TRITON_CACHE_DIR'),
    'disk full': (OSError(errno.ENOSPC, 'No space left on device'), 'TRITON_CACHE_DIR to a folder .* free space'),
    'no ptxas': (RuntimeError('Cannot find ptxas'), 'install Triton anew'),
    'half an installation': (ImportError('libtriton.so: undefined symbol'), 'Triton'),
    'no libcuda': (AssertionError('libcuda.so cannot found!\nPossible files are ...'), 'libcuda.so.1'),
    'no home': (RuntimeError('Could not determine home directory.'), 'TRITON_CACHE_DIR'),
    'another': (KeyError('sm_999'), 'versions of Triton, torch and the driver'),
}


class Launching:
    """A kernel whose launch fails."""

    def __init__(self, error):
        self.error, self.launches = error, 0

    def __getitem__(self, programs):
        def launch(*args, **kwargs):
            self.launches += 1
            raise self.error

        return launch


@pytest.fixture
def failing(monkeypatch):
    """Sets what every launch raises; returns the kernels, which count their launches."""

    def fail(error):
        kernels = [Launching(error) for _ in range(2)]
        names = ('forward', 'backward_values', 'backward_logits', 'backward_static')
        monkeypatch.setattr(elsa_gpu, 'kernels', lambda: SimpleNamespace(**dict.fromkeys(names, kernels[0])))
        of_windows = SimpleNamespace(forward=kernels[1], backward=kernels[1])
        monkeypatch.setattr(windows_gpu, 'kernels', lambda: of_windows)
        monkeypatch.setattr(windows_gpu, 'why_not', lambda *args: None)
        options = {'PADDING': 'vector', 'BLOCK_M': 16, 'BLOCK_N': 16}
        monkeypatch.setattr(windows_gpu, 'options_of', lambda *args, **kwargs: options)
        return kernels

    return fail


@pytest.mark.parametrize('name', FAILURES)
def test_a_launch_that_fails_is_told_once_and_everything_is_right_after_it(name, failing, caplog):
    error, advice = FAILURES[name]
    kernels = failing(error)
    for run in (run_elsa, run_windows, run_elsa, run_windows):
        assert_right(run())
    assert sum(kernel.launches for kernel in kernels) == 1  # nobody tries again
    (line,) = lines(caplog)
    assert '\n' not in line
    start_of_line, _, reason = line.partition('. ')
    assert start_of_line == 'No kernels on the GPU: the operators run in PyTorch, slower'
    assert re.search(advice, reason)
    assert cannot_start(CUDA) == reason  # 'auto' takes PyTorch's form from now on, and 'gpu' by name says why


def test_a_backward_pass_that_fails_alone(failing, caplog, monkeypatch):
    kernels = failing(RuntimeError('Failed to find C compiler'))
    monkeypatch.setattr(elsa_gpu, 'kernels', lambda: pytest.fail('not the forward pass'))
    v, logits, add, grad = leaves((1, 4, 3, 8), (1, 4, 3, 18), (8, 3, 3), (1, 4, 3, 8))
    with torch.no_grad():
        _, lse = elsa_gpu._forward_in_torch(v, logits, add, 2, 3)
    torch.testing.assert_close(lse, logits.unflatten(3, (2, 9)).logsumexp(4))
    monkeypatch.setattr(elsa_gpu, 'kernels', lambda: SimpleNamespace(backward_values=kernels[0]))
    backward = torch.ops.mmext_backbones.elsa_softmax_backward
    with torch.no_grad():
        needs = [True, False, True]
        grad_v, none, grad_add = backward(grad, v, logits, lse, add, 2, 3, needs)
    expected = elsa_gpu._in_torch(v, logits, add, 2, 3)
    torch.testing.assert_close((grad_v, grad_add), torch.autograd.grad(expected, (v, add), grad))
    assert none.numel() == 0
    assert len(lines(caplog)) == 1


def test_without_the_padding_of_its_own(failing, caplog):
    failing(RuntimeError('Failed to find C compiler'))
    for shift_size in (0, 1):
        assert_right(run_windows(shift_size, padding=False))


class OutOfResources(Exception):
    __module__ = 'triton.runtime.errors'


def test_a_kernel_that_triton_refuses_ends_the_use_of_that_kernel_alone(failing, caplog):
    windows = failing(OutOfResources('out of resource: shared memory, Required: 102400, Hardware limit: 101376'))[1]
    for _ in range(2):
        assert_right(run_windows())
    assert windows.launches == 2  # one forward, one backward
    run_windows(shift_size=0)
    assert windows.launches == 4  # another kernel
    assert cannot_start(torch.device('cpu')) is None
    assert start._ALL not in start._given_up
    assert len(lines(caplog)) == 2
    assert all('please report it' in line and 'shared memory' in line for line in lines(caplog))


def test_eight_threads_at_first_use_are_one_line(failing, caplog):
    failing(RuntimeError('Failed to find C compiler'))
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda i: run_windows(), range(8)):
            assert_right(results)
    assert len(lines(caplog)) == 1


@pytest.mark.parametrize(
    'error',
    [
        torch.cuda.OutOfMemoryError('CUDA out of memory'),
        RuntimeError('Triton Error [CUDA]: out of memory'),
        RuntimeError('CUDA error: an illegal memory access was encountered'),
    ],
)
def test_what_the_device_lacks_stays_what_it_is(error, failing, caplog):
    failing(error)
    with pytest.raises(type(error), match=re.escape(str(error))):
        run_windows()
    assert not lines(caplog)
    assert not start._given_up


def test_in_the_interpreter_nothing_is_caught(failing, monkeypatch):
    monkeypatch.setattr(start, 'DEVICES', start_devices)
    failing(OutOfResources('a mistake in a kernel'))
    for run in (run_elsa, run_windows):
        with pytest.raises(OutOfResources, match='a mistake in a kernel'):
            run()


def test_what_an_operator_refuses_is_raised(caplog):
    def kernel(x):
        raise Refused('not here')

    with pytest.raises(Refused, match='not here'):
        or_in_torch(kernel, lambda x: pytest.fail('computed'))(torch.zeros(1))
    assert not lines(caplog)


# --------------------------------------------------------------------------------------------------------------------
# By name


def run_by_name(name, monkeypatch):
    """A training step through the public function, by the argument."""
    module = importlib.import_module(f'mmext_backbones.ops.{name}')
    monkeypatch.setattr(module, '_why_not', lambda form, *args: None)
    if name == 'elsa':
        v, logits, add = leaves((2, 8, 5, 6), (2, 18, 5, 6), (8, 3, 3))
        out = elsa(v, logits, None, add, num_heads=2, kernel_size=3, backend='gpu')
    else:
        qkv, bias = leaves((2, 5, 6, 12), (2, 9, 9))
        out = window_attention(qkv, bias, num_heads=2, window_size=(3, 3), scale=0.7, backend='gpu')
    out.sum().backward()


BY_NAME = r"^backend='gpu': Triton cannot start: install a C compiler"


@pytest.mark.parametrize('name', ['elsa', 'window_attention'])
def test_by_name_each_launch_raises_why(name, failing, monkeypatch, caplog):
    """As a C kernel by name does; by 'auto' PyTorch's form runs on."""
    kernels = failing(RuntimeError('Failed to find C compiler'))
    for _ in range(3):
        with pytest.raises(RuntimeError, match=BY_NAME):
            run_by_name(name, monkeypatch)
    assert sum(kernel.launches for kernel in kernels) == 1
    assert len(lines(caplog)) == 1
    assert_right(run_elsa())
    assert_right(run_windows())


def test_by_name_in_the_environment(failing, monkeypatch):
    failing(RuntimeError('Failed to find C compiler'))
    monkeypatch.setenv('MMEXT_BACKEND', 'gpu')
    monkeypatch.setattr(importlib.import_module('mmext_backbones.ops.elsa'), '_why_not', lambda *args: None)
    v, logits, add = leaves((2, 8, 5, 6), (2, 18, 5, 6), (8, 3, 3))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=BY_NAME):
            elsa(v, logits, None, add, num_heads=2, kernel_size=3)
        x = torch.randn(4, 6)
        with pytest.raises(RuntimeError, match=BY_NAME):
            norm_gpu.forward(x, x[0], x[0], 1e-5, x.dtype)
        with pytest.raises(RuntimeError, match=BY_NAME):
            gelu_gpu.gelu_backward_sum_(x, x, 'none')


@pytest.mark.parametrize('name', ['elsa', 'window_attention'])
def test_by_name_a_backward_pass_that_fails_alone_raises_too(name, monkeypatch):
    module, error = {'elsa': elsa_gpu, 'window_attention': windows_gpu}[name], OutOfResources('shared memory')
    forward = or_in_torch(module._forward_in_torch, lambda *args: pytest.fail('computed'))
    backward = or_in_torch(lambda *args: (_ for _ in ()).throw(error), module._backward_in_torch)
    operators = {
        'elsa': ('elsa_softmax', 'elsa_softmax_backward'),
        'window_attention': ('window_attention_triton', 'window_attention_triton_backward'),
    }
    namespace = SimpleNamespace(**dict(zip(operators[name], (forward, backward), strict=True)))
    monkeypatch.setattr(torch.ops, 'mmext_backbones', namespace)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^backend='gpu': Triton refuses a kernel, please report it"):
            run_by_name(name, monkeypatch)


def test_by_name_ends_with_the_call():
    def operator(reason):
        start.refuse_by_name(reason)
        return reason

    for _ in range(2):
        assert start.call(operator, False, 'a') == 'a'
        with pytest.raises(Refused, match=r"^backend='gpu': b$"):
            start.call(operator, True, 'b')


@functools.cache
def cached():
    """In place of what a version of Triton does not remember."""


def driver(monkeypatch, target):
    triton = pytest.importorskip('triton')
    if not hasattr(triton, 'JITFunction') or start.find_spec('triton.backends') is None:
        pytest.skip('Triton 3.0')
    monkeypatch.setattr(triton.runtime.driver, '_active', SimpleNamespace(get_current_target=target), raising=False)
    monkeypatch.setattr(gpu_support, 'capability_of', lambda device: (9, 0))


def both_ask():
    return [elsa_gpu.why_not(CUDA, torch.float16), windows_gpu.why_not(CUDA, torch.float16, 32, 49)]


@needs_target
@pytest.mark.skipif('TRITON_INTERPRET' in os.environ, reason='the interpreter needs no compiler')
@pytest.mark.parametrize('lack', ['compiler', 'headers'])
def test_asked_beforehand_with_tritons_own_builder(lack, monkeypatch, caplog, tmp_path, capfd):
    build = pytest.importorskip('triton.runtime.build')
    if not hasattr(build, 'compile_module_from_src'):
        pytest.skip('Triton 3.3 has another name for it')
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    monkeypatch.delenv('CC', raising=False)
    if lack == 'compiler':
        monkeypatch.setenv('PATH', '')
        getattr(build, '_find_compiler', cached).cache_clear()
    else:
        paths = sysconfig.get_paths() | {'include': str(tmp_path)}
        monkeypatch.setattr(sysconfig, 'get_paths', lambda *args, **kwargs: paths)
    driver(monkeypatch, lambda: build.compile_module_from_src('#include <Python.h>\n', 'nothing'))
    reasons = both_ask()
    (line,) = lines(caplog)
    wanted = 'install a C compiler' if lack == 'compiler' else f'install the headers of Python .*no {tmp_path}/Python.h'
    assert all(re.search(wanted, reason) for reason in (*reasons, line))
    getattr(build, '_find_compiler', cached).cache_clear()


@pytest.mark.parametrize('lack', ['missing', 'broken', 'old'])
def test_triton_missing_broken_or_too_old_is_told_once(lack, monkeypatch, caplog):
    if lack == 'missing':
        monkeypatch.setitem(sys.modules, 'triton', None)
        wanted = 'Triton cannot be imported: .*pip install triton'
    elif lack == 'broken':
        monkeypatch.setattr(start, 'find_spec', lambda name: (_ for _ in ()).throw(OSError('libtriton.so: bad file')))
        wanted = 'libtriton.so: bad file'
        pytest.importorskip('triton')
    else:
        monkeypatch.setattr(start, 'find_spec', lambda name: None)
        wanted = 'too old: the kernels are for 3.0 and newer'
        pytest.importorskip('triton')
    reasons = both_ask()
    (line,) = lines(caplog)
    assert all(re.search(wanted, reason) for reason in (*reasons, line))


def test_on_the_cpu_nobody_is_told(caplog):
    assert cannot_start(torch.device('cpu')) is None
    assert not lines(caplog)


def test_where_it_starts_there_is_no_reason(monkeypatch, caplog):
    driver(monkeypatch, lambda: None)
    assert cannot_start(CUDA) is None
    assert not lines(caplog)
