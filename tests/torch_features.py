"""What older versions of torch and Triton cannot do: tests of it are skipped there, for a reason that names it."""

import importlib.metadata

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dev.fake_cuda import fake_cuda
from mmext_backbones.ops.window_attention import cpu

try:
    from torch.fx.experimental import _config as fx_config
except ImportError:  # torch 2.1
    fx_config = None

RECORDS_ONCE = hasattr(fx_config, 'backed_size_oblivious')  # where conditions on sizes need not be asked; export too
needs_compile = pytest.mark.skipif(
    not hasattr(torch.library, 'register_fake'), reason='torch.compile records our operators from torch 2.4 on'
)
needs_one_recording = pytest.mark.skipif(
    not RECORDS_ONCE, reason='one recording for all sizes: torch 2.4 asks whether a map needs padding'
)
NO_KERNELS = cpu.why_not()
needs_kernels = pytest.mark.skipif(
    NO_KERNELS is not None, reason=f'our operators are recorded by sizes where their kernels in C are not: {NO_KERNELS}'
)
needs_export = pytest.mark.skipif(not RECORDS_ONCE, reason='torch.export for a range of sizes needs torch 2.9')


def _has_half_autocast() -> bool:
    try:
        with torch.autocast('cpu', dtype=torch.float16):
            return torch.mm(torch.zeros(1, 1), torch.zeros(1, 1)).dtype == torch.float16
    except RuntimeError:
        return False


def _has_fake_cuda() -> bool:
    try:
        with FakeTensorMode():
            torch.empty(1, device='cuda').new_zeros(1)[:] = 1
    except RuntimeError:
        return False
    return True


def _has_fake_backward() -> bool:
    try:
        with fake_cuda():
            torch.empty(1, device='cuda', requires_grad=True).mul(2).backward(torch.empty(1, device='cuda'))
    except (AttributeError, RuntimeError):
        return False
    return True


needs_fake_cuda = pytest.mark.skipif(
    not _has_fake_cuda(), reason=f'torch {torch.__version__} has tensors of CUDA without data only where a driver is'
)


class CountOperations(TorchDispatchMode):
    """Counts the operators of the dispatcher that are called inside, views among them; questions of the device not."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.namespace != 'prim'
        return function(*args, **(kwargs or {}))


needs_fake_backward = pytest.mark.skipif(
    not _has_fake_cuda() or not _has_fake_backward(),
    reason=f'torch {torch.__version__} has no backward pass on tensors of CUDA without data',
)
# for parametrize: float16 in autocast on the CPU
HALF_AUTOCAST = pytest.param(
    torch.float16,
    id='dtype1',
    marks=pytest.mark.skipif(not _has_half_autocast(), reason='autocast on the CPU takes float16 from torch 2.4 on'),
)


def triton_version() -> tuple[int, ...]:
    """Of the installed Triton: (3, 8); (0,) where there is none."""
    try:
        return tuple(map(int, importlib.metadata.version('triton').split('.')[:2]))
    except importlib.metadata.PackageNotFoundError:
        return (0,)


needs_interpreter = pytest.mark.skipif(
    (0,) < triton_version() < (3, 1), reason="Triton's interpreter runs the kernels from 3.1 on"
)
needs_target = pytest.mark.skipif(
    (0,) < triton_version() < (3,), reason='Triton compiles for a GPU that is not there from 3.0 on'
)
