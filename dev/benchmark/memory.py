"""Peak memory of one pass of one side, each in a fresh process.

What is counted is what a pass takes beyond what the process holds between two passes: not the weights, the inputs or
the library itself, but activations, temporaries and, with the backward pass, the gradients.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch

from .case import Setting
from .timing import DTYPES, Pass

__all__ = ['peak', 'why_not']

SIDES = ('ours', 'peer')


def why_not(device: torch.device) -> str | None:
    """Why peaks cannot be measured here, or None."""
    if device.type == 'cpu' and not Path('/proc/self/clear_refs').exists():
        return 'the peak of a process is read from /proc/self, which is Linux'
    return None


def peak(case: str, peer: str, arch: str, setting: Setting, side: str, mode: str, dtype: str, device: str) -> float:
    """MiB that a pass of `side` needs, measured in a process of its own.

    Args:
        case, peer, arch, dtype: their names.
        setting: the arch in it is not used: a process is told names.
        side: one of `SIDES`.
        mode: 'forward' or 'forward+backward'.
        device: 'cpu' or 'cuda'.

    Raises:
        RuntimeError: where that process fails; with the last line of what it said.
    """
    task = [case, peer, arch, setting.size, setting.batch, setting.part, side, mode, dtype, device]
    command = [sys.executable, '-m', __name__, json.dumps([*task, torch.get_num_threads()])]
    # glibc then keeps no large block for itself, whatever was freed before
    steady = {**os.environ, 'MALLOC_MMAP_THRESHOLD_': str(2**17)}
    done = subprocess.run(command, capture_output=True, text=True, env=steady, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f'peak memory of {case}, {side}: {(done.stderr.strip().splitlines() or ["no message"])[-1]}')
    return float(done.stdout.split()[-1])


def measure(one: Pass) -> float:
    """MiB of a second pass; the first one leaves what the libraries keep for themselves."""
    one()
    for tensor in (*one.inputs, *one.module.parameters()):
        tensor.grad = None
    if one.device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        outs = one()
        torch.cuda.synchronize()
        del outs
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    _trim()
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    before = _resident('VmRSS')
    one()
    return _resident('VmHWM') - before


def _resident(field: str) -> float:
    """VmRSS (now) or VmHWM (its peak) of this process in MiB; getrusage would report the parent's peak."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'^{field}:\s+(\d+) kB$', status, re.MULTILINE).group(1)) / 1024


def _trim() -> None:
    """Gives back what the allocator keeps, or a pass would find its memory there and its peak would look small."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc
    if trim is not None:
        trim(0)


def _main(task: str) -> None:
    from .cases import CASES

    name, peer_name, arch, size, batch, part, side, mode, dtype, device, threads = json.loads(task)
    torch.set_num_threads(threads)
    case = CASES[name]
    peer = next(peer for peer in case.peers if peer.name == peer_name)
    setting = Setting(case.archs[arch], tuple(size), batch, part)
    module = case.ours(setting, peer) if side == 'ours' else peer.build(setting)
    inputs = [tensor.to(device) for tensor in case.inputs(setting)]
    print(measure(Pass(module.to(device), inputs, mode, DTYPES[dtype], case.differentiable)))


if __name__ == '__main__':
    _main(sys.argv[1])
