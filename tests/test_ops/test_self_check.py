"""The check of the kernels in Triton at their first launch, with kernels that are wrong in one way each."""

import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from mmext_backbones.ops import elsa, gpu_support, kernel_cache, self_check, triton_start, window_attention
from mmext_backbones.ops.elsa import gpu as elsa_gpu
from mmext_backbones.ops.layer_norm import gpu as norm_gpu
from mmext_backbones.ops.norm_gelu import gpu as gelu_gpu
from mmext_backbones.ops.self_check import Launcher, checked
from mmext_backbones.ops.window_attention import gpu as windows_gpu
from tests.torch_features import needs_compile, needs_interpreter

ROOT = Path(__file__).parents[2]
CPU = torch.device('cpu')
X = torch.linspace(-1, 1, 12)


@pytest.fixture(autouse=True)
def process(tmp_path, monkeypatch):
    """The CPU as a device whose kernels are checked, an empty cache; called, a new process with the same cache."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('MMEXT_SELF_CHECK', raising=False)
    monkeypatch.setattr(self_check, 'DEVICES', ('cpu',))

    def begin():
        monkeypatch.setattr(self_check, '_verdicts', {})
        monkeypatch.setattr(gpu_support, '_refused', {})

    begin()
    return begin


def in_torch(x, factor):
    return x * factor, x.cumsum(0)


def toy(kernel, in_torch=in_torch):
    return checked(
        Launcher('toy', kernel, in_torch, lambda x, factor: (factor,), lambda x, factor: (x.cos(), factor), ('a', 'b'))
    )


def counted(function):
    def kernel(*args):
        kernel.calls += 1
        return function(*args)

    kernel.calls = 0
    return kernel


def is_right(results):
    return all(map(torch.equal, results, in_torch(X, 3.0)))


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']


def verdicts(tmp_path):
    return sorted((tmp_path / 'cache/mmext_backbones').glob('self_check_*'))


def test_a_right_kernel_is_checked_once_and_by_the_next_process_not_at_all(process, caplog, tmp_path):
    kernel = counted(in_torch)
    run = toy(kernel)
    assert is_right(run(X, 3.0))
    assert is_right(run(X, 3.0))
    assert kernel.calls == 3
    process()
    assert is_right(run(X, 3.0))
    assert kernel.calls == 4
    run(X, 2.0)  # another kind
    run(X.half(), 3.0)
    assert kernel.calls == 8
    assert len(verdicts(tmp_path)) == 3
    assert warnings(caplog) == []


@pytest.mark.parametrize('which', ['a', 'b'])
@pytest.mark.parametrize('how', ['off', 'nan'])
def test_a_wrong_result_is_told_once_and_pytorch_takes_over(which, how, process, caplog):
    def wrong(x, factor):
        results = dict(zip('ab', in_torch(x, factor), strict=True))
        results[which][3] += 0.01 if how == 'off' else torch.nan
        return tuple(results.values())

    run = toy(kernel := counted(wrong))
    for _ in range(3):
        assert is_right(run(X, 3.0))
    assert is_right(toy(kernel)(X, 3.0))
    run(X, 2.0)  # of all kinds
    assert kernel.calls == 1
    [line] = warnings(caplog)
    for part in ('toy in torch.float32', f'{which} is off by', torch.__version__, 'driver', 'Triton', 'report'):
        assert part in line
    assert '\n' not in line
    assert 'toy' in gpu_support.refused('toy', torch.float32, CPU)

    process()  # which tells it once, and runs no kernel
    caplog.clear()
    assert is_right(run(X, 3.0))
    assert is_right(run(X, 3.0))
    assert kernel.calls == 1
    assert len(warnings(caplog)) == 1


def test_by_name_a_wrong_kernel_is_told_and_raises_each_time(caplog):
    run = triton_start.or_in_torch(toy(lambda x, factor: (x, x)), in_torch)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^backend='gpu': A kernel in Triton is given up, toy"):
            triton_start.call(run, True, X, 3.0)
    assert is_right(triton_start.call(run, False, X, 3.0))
    assert len(warnings(caplog)) == 1


def test_a_kernel_that_breaks_the_device_is_told_and_tried_by_the_next_process(process, caplog, tmp_path):
    def failing(x, factor):
        raise RuntimeError('CUDA error: an illegal memory access was encountered\nand more')

    run = toy(kernel := counted(failing))
    assert is_right(run(X, 3.0))
    assert is_right(run(X, 3.0))
    assert kernel.calls == 1
    [line] = warnings(caplog)
    assert 'it fails, RuntimeError: CUDA error: an illegal memory access was encountered [' in line
    assert verdicts(tmp_path) == []
    process()
    assert is_right(run(X, 3.0))
    assert kernel.calls == 2


@pytest.mark.parametrize('problem', ['out of memory', 'no such compiler'])
def test_what_fails_at_the_launch_too_is_told_there(problem, monkeypatch, caplog):
    def failing(x, factor):
        raise RuntimeError(problem)

    for _ in range(2):
        with pytest.raises(RuntimeError, match=problem):
            toy(failing)(X, 3.0)
    assert warnings(caplog) == []
    if problem == 'out of memory':
        return
    monkeypatch.setattr(triton_start, 'DEVICES', ('cpu',))
    monkeypatch.setattr(triton_start, '_given_up', {})
    monkeypatch.setattr(triton_start, '_told', set())
    run = triton_start.or_in_torch(toy(failing), in_torch)
    for _ in range(3):
        assert is_right(run(X, 3.0))
    [line] = warnings(caplog)
    assert 'Triton cannot start' in line


def test_eight_threads_at_first_use(caplog):
    def wrong(x, factor):
        time.sleep(0.05)
        return x, x

    run = toy(kernel := counted(wrong))
    barrier = threading.Barrier(8)

    def begin(_):
        barrier.wait()
        return run(X, 3.0)

    with ThreadPoolExecutor(8) as pool:
        assert all(map(is_right, pool.map(begin, range(8))))
    assert kernel.calls == 1
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize('how', ['cut', 'empty', 'exchanged', 'writable'])
def test_a_damaged_verdict_is_made_anew(how, process, tmp_path):
    run = toy(kernel := counted(in_torch))
    run(X, 3.0)
    [path] = verdicts(tmp_path)
    content = path.read_bytes()
    if how == 'writable':
        path.chmod(0o666)
    else:
        path.write_bytes({'cut': content[:-3], 'empty': b'', 'exchanged': b'{"fault": "none of yours"}'}[how])
    process()
    assert is_right(run(X, 3.0))
    assert kernel.calls == 4
    assert [each.name for each in verdicts(tmp_path)] == [path.name]
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_a_folder_each_process_checks(process, monkeypatch, caplog):
    def refuse():
        raise OSError('read-only')

    monkeypatch.setattr(kernel_cache, '_private_folder', refuse)
    run = toy(kernel := counted(in_torch))
    for _ in range(2):
        process()
        assert is_right(run(X, 3.0))
    assert kernel.calls == 4
    assert warnings(caplog) == []


def test_it_can_be_left_out(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv('MMEXT_SELF_CHECK', '0')
    run = toy(kernel := counted(lambda x, factor: (x, x)))
    assert run(X, 3.0)[0] is X
    assert kernel.calls == 1
    assert verdicts(tmp_path) == []
    assert warnings(caplog) == []


def test_not_while_cuda_records_a_graph(monkeypatch):
    recording = True
    run = toy(kernel := counted(in_torch))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_current_stream_capturing', lambda: recording)
    assert is_right(run(X, 3.0))
    assert kernel.calls == 1
    recording = False
    assert is_right(run(X, 3.0))
    assert kernel.calls == 3


def test_another_driver_or_version_is_checked_anew(process, monkeypatch, tmp_path):
    run = toy(kernel := counted(in_torch))
    run(X, 3.0)
    for name in ('_driver', '_versions'):
        process()
        monkeypatch.setattr(self_check, name, lambda: 'another')
        run(X, 3.0)
    assert kernel.calls == 6
    assert len(verdicts(tmp_path)) == 3


def test_a_driver_that_tells_nothing_ends_nothing(monkeypatch, caplog):
    def facts(*_):
        raise OSError('no sources')

    monkeypatch.setattr(self_check, '_facts', facts)
    assert is_right(toy(in_torch)(X, 3.0))
    assert warnings(caplog) == []


def test_what_is_not_the_kernels_fault_ends_nothing(caplog):
    def broken(x, factor):
        if x.dtype == torch.float64:
            raise RuntimeError('no memory')
        return in_torch(x, factor)

    run = toy(counted(in_torch), broken)
    assert is_right(run(X, 3.0))
    assert is_right(run(X, 3.0))
    assert warnings(caplog) == []


def test_the_caller_keeps_its_modes_and_random_numbers():
    seen = []

    def kernel(x, factor):
        seen.append((torch.is_autocast_enabled('cpu'), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        torch.set_grad_enabled(False)
        return in_torch(x, factor)

    before = torch.get_rng_state()
    with torch.autocast('cpu', torch.bfloat16):
        toy(kernel)(X, 3.0)
        assert torch.is_autocast_enabled('cpu')
    with torch.inference_mode():
        toy(kernel)(X, 2.0)
    torch.set_grad_enabled(True)
    assert torch.equal(torch.get_rng_state(), before)
    assert seen[0] == seen[2] == (False, True, False)  # of the checks; 1 and 3 are the caller's own


# --------------------------------------------------------------------------------------------------------------------
# The operators

OPTIONS = 2, (7, 7), 0.2


def windows_args(dtype, shift, grid, padded, size=(9, 11)):
    qkv = torch.ones(1, *size, 3 * 2 * 24, dtype=dtype)
    padding = torch.ones(3 * 2 * 24) if padded else None
    return qkv, torch.ones(2, 49, 49), padding, *OPTIONS, shift, grid


def elsa_args(dtype):
    return torch.ones(1, 3, 4, 2 * 24, dtype=dtype), torch.ones(1, 3, 4, 2 * 9, dtype=dtype), torch.ones(48, 3, 3), 2, 3


CASES = {  # operator, and its arguments from a type
    'shifted': (windows_gpu, lambda dtype: windows_args(dtype, 3, False, True)),
    'whole': (windows_gpu, lambda dtype: windows_args(dtype, 0, False, True, (14, 14))),
    'grid': (windows_gpu, lambda dtype: windows_args(dtype, 0, True, False)),
    'elsa': (elsa_gpu, elsa_args),
    'layer norm': (
        norm_gpu,
        lambda dtype: (torch.ones(3, 45, dtype=dtype), torch.ones(45), torch.ones(45), 1e-5, dtype),
    ),
    'gelu': (gelu_gpu, lambda dtype: (torch.ones(3, 45, dtype=dtype),) * 2),
}


def of_direction(module, args, direction):
    """The launcher and its arguments; of GELU, which has a backward pass only, that of each kind."""
    if module is gelu_gpu:
        return module.BACKWARD, (*args, direction == 'forward', True)
    if module is norm_gpu and direction == 'backward':
        return module.BACKWARD, (args[0], *args[:3], args[0], 1e-5, True)
    if direction == 'forward':
        return module.FORWARD, args
    grad = args[0][..., : args[0].shape[-1] // (3 if module is windows_gpu else 1)]
    if module is windows_gpu:
        return module.BACKWARD, (grad, *args)
    return module.BACKWARD, (grad, *args[:2], torch.ones(1, 3, 4, 2), *args[2:], [True] * 3)


def rounded(in_torch):
    """What a right kernel computes: in float32, with results of the types that the kernel gives."""

    def kernel(*args):
        wide = in_torch(*(x.float() if isinstance(x, torch.Tensor) else x for x in args))
        return tuple(x.to(args[0].dtype) for x in self_check._tuple(wide))

    return kernel


@pytest.mark.parametrize('dtype', self_check.TOLERANCES)
@pytest.mark.parametrize('direction', ['forward', 'backward'])
@pytest.mark.parametrize('name', CASES)
def test_a_right_kernel_passes_and_each_wrong_result_is_found(name, direction, dtype):
    module, make = CASES[name]
    launcher, args = of_direction(module, make(dtype), direction)
    right = rounded(launcher.in_torch)
    assert self_check._compare(launcher._replace(kernel=right), CPU, args, False) == (None, True)
    for i, result in enumerate(launcher.results):

        def wrong(*args, i=i):
            results = [x.clone() for x in right(*args)]
            if results[i].numel():
                results[i].view(-1)[-1] += results[i].abs().max() / 4 + 1e-3
            return results

        fault, lasts = self_check._compare(launcher._replace(kernel=wrong), CPU, args, False)
        if 'padding' in result and name == 'grid':  # which has none
            assert fault is None
        else:
            assert fault.startswith(f'{result} is off by')
            assert lasts


@pytest.mark.parametrize('name', CASES)
def test_the_sample_is_of_the_same_kind(name):
    module, make = CASES[name]
    for direction in ('forward', 'backward'):
        launcher, args = of_direction(module, make(torch.float16), direction)
        sample = launcher.sample(*args)
        assert launcher.kind(*sample) == launcher.kind(*args)
        assert [x.dtype for x in sample if isinstance(x, torch.Tensor)] == [
            x.dtype for x in args if isinstance(x, torch.Tensor)
        ]


def test_a_wrong_gradient_alone_leaves_the_right_numbers(monkeypatch, caplog):
    """Through the operators of the dispatcher, as in a training step."""
    operators = {}
    for name, launcher in (('forward', windows_gpu.FORWARD), ('backward', windows_gpu.BACKWARD)):
        right = rounded(launcher.in_torch)

        def kernel(*args, right=right, name=name):
            results = right(*args)
            return (results[0], results[1] * 2, results[2]) if name == 'backward' else results[0]

        operators[name] = checked(launcher._replace(kernel=kernel))
    args = windows_args(torch.float32, 3, False, True)
    grad = torch.rand(1, 9, 11, 48)
    out = operators['forward'](*args)
    torch.testing.assert_close(out, windows_gpu._forward_in_torch(*args))
    for actual, expected in zip(
        operators['backward'](grad, *args), windows_gpu._backward_in_torch(grad, *args), strict=True
    ):
        torch.testing.assert_close(actual, expected)
    [line] = warnings(caplog)
    assert 'the gradient of bias is off by' in line
    assert windows_gpu.KERNEL in line


def attend(backend, qkv, bias, padding):
    options = {'num_heads': 2, 'window_size': (7, 7), 'scale': 0.2, 'shift_size': 3, 'padding': padding}
    if backend == 'gpu':
        return windows_gpu.window_attention_gpu(qkv, bias, **options)
    return window_attention(qkv, bias, **options, backend=backend)


def aggregate(backend, v, logits, add):
    if backend == 'gpu':
        return elsa_gpu.elsa_gpu(v, logits, add, 2, 3)
    return elsa(v, logits, None, add, num_heads=2, kernel_size=3, backend=backend)


@pytest.mark.parametrize('compiled', [False, pytest.param(True, marks=[pytest.mark.slow, needs_compile])])
@pytest.mark.parametrize(
    ('function', 'shapes'),
    [(attend, [(1, 9, 11, 96), (2, 49, 49), (96,)]), (aggregate, [(1, 8, 5, 6), (1, 18, 5, 6), (8, 3, 3)])],
)
def test_a_training_step_goes_on_where_the_kernels_write_nothing(function, shapes, compiled, monkeypatch, caplog):
    pytest.importorskip('triton')
    for module in (windows_gpu, elsa_gpu):
        monkeypatch.setattr(module, 'launch', lambda *_: None)
        monkeypatch.setattr(module, 'why_not', lambda *_: None)
    tensors = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in shapes]
    results = []
    for backend in ('gpu', 'torch', 'gpu'):
        leaves = [x.clone().requires_grad_() for x in tensors]
        run = torch.compile(function, backend='aot_eager') if compiled and backend == 'gpu' else function
        out = run(backend, *leaves)
        out.square().sum().backward()
        results.append([out.detach(), *(x.grad for x in leaves)])
    for other in results[::2]:
        for actual, expected in zip(other, results[1], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    [line] = warnings(caplog)
    assert 'is off by' in line


def test_what_is_compiled_anew_is_checked_anew():
    pytest.importorskip('triton')
    kinds = {}
    for dtype, (shift, grid, padded), size, edge in itertools.product(
        (torch.float16, torch.float32),
        ((0, False, True), (3, False, True), (2, False, True), (0, False, False), (0, True, False)),
        ((9, 11), (42, 42)),
        ((7, 7), (6, 7), (3, 3), (14, 14)),
    ):
        qkv, bias, padding, heads, _, scale, _, _ = windows_args(dtype, 0, False, padded, size)
        args = qkv, bias, padding, heads, edge, scale, min(shift, min(edge) - 1), grid
        for backward in (False, True):
            made = windows_gpu.options_of(qkv, padded, heads, edge, args[6], grid, backward)
            kinds.setdefault((dtype, backward, windows_gpu._kind(*args)), set()).add(str(made))
    assert len(kinds) > 40
    assert all(len(options) == 1 for options in kinds.values())


SECOND_PROCESS = """
import logging
import sys
from types import SimpleNamespace

import torch

from mmext_backbones.ops import self_check
from mmext_backbones.ops.layer_norm import gpu
from tests.test_ops.test_self_check import LogTo

logging.getLogger('mmext_backbones').addHandler(LogTo(sys.stdout))
self_check.DEVICES = ('cpu',)  # where Triton's interpreter runs
compare, kernels = self_check._compare, gpu.kernels()

def told(*args):
    print('compared')
    return compare(*args)

self_check._compare = told
if sys.argv[1] == 'wrong':
    def launch(kernel, grid, tensors, *others):
        tensors[3].zero_()  # the output
    gpu.launch = launch
x = torch.linspace(-1, 1, 60).view(4, 15)
y = gpu.forward(x, torch.ones(15), torch.zeros(15), 1e-5, torch.float32)
torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (15,)))
print('right')
"""


class LogTo(logging.StreamHandler):
    """Writes the kind of each warning."""

    def emit(self, record):
        if record.levelno >= logging.WARNING:
            self.stream.write(f'{record.getMessage().partition(",")[0]}\n')


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize('kernel', ['right', 'wrong'])
def test_another_process_takes_the_verdict_as_it_is_kept(kernel, tmp_path):
    """Two processes, one after the other; the kernels run in the interpreter, or write zeros."""
    pytest.importorskip('triton')
    environment = os.environ | {'TRITON_INTERPRET': '1', 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    found = []
    for _ in range(2):
        command = [sys.executable, '-c', SECOND_PROCESS, kernel]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines())
    given_up = ['A kernel in Triton is given up'] if kernel == 'wrong' else []
    assert found == [['compared', *given_up, 'right'], [*given_up, 'right']]
    assert len(verdicts(tmp_path)) == 1


@needs_interpreter
@pytest.mark.slow
@pytest.mark.parametrize('name', CASES)
def test_the_kernels_pass_in_the_interpreter(name):
    pytest.importorskip('triton')
    code = f"""
import torch
from tests.test_ops.test_self_check import CASES, CPU, of_direction, self_check
module, make = CASES[{name!r}]
for direction in ('forward', 'backward'):
    launcher, args = of_direction(module, make(torch.float16), direction)
    assert self_check._compare(launcher, CPU, args, False) == (None, True)
"""
    environment = os.environ | {'TRITON_INTERPRET': '1'}
    done = subprocess.run([sys.executable, '-c', code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
