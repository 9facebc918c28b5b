"""Operators, bytes moved and bytes kept of a training step on a GPU, counted without one.

    python -m dev.step_traffic                    # the four networks beside those of others
    python -m dev.step_traffic swin --batch 8
    python -m dev.step_traffic --docs             # renews the table in docs/scaling.md

The networks run forward and backward on CUDA tensors without data, under autocast to float16, as on a GPU with Triton.
An operator is one of PyTorch's dispatcher that computes; views and allocations are none. What it moves are its inputs
and its outputs, each once: kernels that read their inputs again move more, and an operator that launches several
kernels counts once. What is kept are the tensors that autograd saves, with the narrow copies of the weights, without
what cuDNN keeps of its LSTMs. The floor of the time is the longer of bytes / bandwidth and of operations / peak.
"""

import argparse
import datetime
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mmext_backbones.analysis.estimate import Storages, without_numbers
from mmext_backbones.analysis.estimate_table import replace_table
from mmext_backbones.ops import gpu_support
from mmext_backbones.ops.bilstm2d import torch_lstm
from mmext_backbones.ops.window_attention import gpu as window_attention_gpu
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.console import silence_libraries

from .benchmark.case import Case, Setting, absence
from .benchmark.cases import CASES
from .fake_cuda import fake_cuda

DOCS = Path(__file__).parents[1] / 'docs' / 'scaling.md'
BEGIN, END = '<!-- traffic: begin (python -m dev.step_traffic --docs) -->', '<!-- traffic: end -->'
SIZES = {'swin': (800, 1344), 'elsa_swin': (800, 1344), 'maxvit': (896, 1344), 'sequencer': (784, 1344)}
BANDWIDTH, PEAK = 2.039e12, 312e12  # NVIDIA's figures of an A100 with 80 GB: bytes, and operations in float16, a second
HEADER = (
    '| network | images | | operators | moved (GB) | kept (MiB) | floor of the time (ms): bytes | operations |\n'
    '|---|---|---|---:|---:|---:|---:|---:|'
)
# allocations, and views that are not marked as such
NO_OPERATORS = ('empty', 'empty_like', 'empty_strided', 'new_empty', 'new_empty_strided')
NO_OPERATORS += ('_unsafe_view', 'detach', 'lift_fresh', '_reshape_alias')


class Traffic(NamedTuple):
    """Of a step: operators that compute, bytes of their inputs and outputs, bytes kept, floating-point operations."""

    operators: int
    moved: int
    kept: int
    operations: int


class Counter(TorchDispatchMode):
    """Counts the operators that run inside, the bytes of their inputs and outputs, and floating-point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.moved = self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.name().partition('::')[2].partition('.')[0]
        if not (function.is_view or function.namespace == 'prim' or name in NO_OPERATORS):
            self.operators += 1
            self.moved += sum(map(_bytes, tree_leaves((args, kwargs, out))))
            if (operations := flop_registry.get(function._overloadpacket)) is not None:
                self.operations += operations(*args, **(kwargs or {}), out_val=out)
        return out


def _bytes(x: object) -> int:
    """Of a tensor in memory: an expanded one has fewer than elements."""
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) if isinstance(x, Tensor) else 0


def count(module: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype = torch.float16) -> Traffic:
    """A training step of a module on inputs like these: its forward pass under autocast, and its backward pass."""
    with as_on_a_gpu() as mode:
        module = without_numbers(module, mode, 'cuda')
        module.train()  # returns None in OpenMMLab's backbones
        inputs = [torch.empty(x.shape, dtype=x.dtype, device='cuda') for x in inputs]
        kept, counter = Storages(module), Counter()
        with counter:
            with torch.autocast('cuda', dtype), kept.watching():
                outs = list(module(*inputs))
            found = kept.bytes
            torch.autograd.backward(outs, [torch.empty_like(out) for out in outs])
    return Traffic(counter.operators, counter.moved, found, counter.operations)


@contextmanager
def as_on_a_gpu() -> Iterator[FakeTensorMode]:
    """A mode of tensors without data, in which those of CUDA take the kernels that a GPU would run."""
    elsa = sys.modules['mmext_backbones.ops.elsa']
    with ExitStack() as stack:
        for owner, name, answer in (
            (window_attention_gpu, 'why_not', lambda *args: None),
            (elsa, 'gpu_why_not', lambda *args: None),
            (gpu_support, 'why_not_rows', lambda *args: None),
            (torch, 'lstm', _lstm),
            (torch._VF, 'lstm', _lstm),
        ):
            stack.enter_context(mock.patch.object(owner, name, answer))
        yield stack.enter_context(fake_cuda())


def _lstm(x: Tensor, states, weights: Sequence[Tensor], *options) -> tuple[Tensor, Tensor, Tensor]:
    """torch.lstm as one operator, which it is with cuDNN; without data PyTorch takes it apart."""
    batch_first = options[-1]
    x = torch_lstm._in_its_type(x.transpose(0, 1) if batch_first else x).contiguous()
    out = torch_lstm._LSTM.apply(x, *weights)
    return out.transpose(0, 1) if batch_first else out, *states


# --------------------------------------------------------------------------------------------------------------------
# The table


def rows(names: Sequence[str], batch: int) -> Iterator[str]:
    """A line for each form of ours, and for each peer that is installed."""
    for name in names:
        case = CASES[name]
        setting = Setting(next(iter(case.archs.values())), SIZES[name], batch)
        inputs = case.inputs(setting)
        peers = [peer for peer in case.peers if absence(peer) is None and not peer.refuses(setting)]
        sides = {f'ours, recompute={on}': partial(_ours, case, setting, on) for on in (True, False)}
        sides |= {peer.name: partial(peer.build, setting) for peer in peers}
        for side, build in sides.items():
            found = count(build(), inputs)
            height, width = setting.size
            cells = [
                case.title,
                f'{batch} x {height} x {width}',
                side,
                str(found.operators),
                f'{found.moved / 1e9:.1f}',
            ]
            cells += [f'{found.kept / 2**20:.0f}', f'{found.moved / BANDWIDTH * 1e3:.1f}']
            cells += [f'{found.operations / PEAK * 1e3:.1f}']
            yield f'| {" | ".join(cells)} |'


def _ours(case: Case, setting: Setting, recompute: bool) -> nn.Module:
    model = case.ours(setting, case.peers[0])
    model.recompute = recompute
    return model


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='*', metavar='NETWORK', help=f'of {", ".join(SIZES)}; all by default')
    parser.add_argument('--batch', type=int, default=2, help='images')
    parser.add_argument('--docs', action='store_true', help=f'renew the table in {DOCS.name} instead')
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    for name in args.networks:
        if name not in SIZES:
            parser.error(f'no network {name!r}: expected {", ".join(SIZES)}')
    silence_libraries()
    if not args.docs:
        print(HEADER)
        for line in rows(args.networks or tuple(SIZES), args.batch):
            print(line, flush=True)
        return
    lines = [HEADER, *rows(tuple(SIZES), 2), '', f'Counted on {datetime.date.today()}, torch {torch.__version__}.']
    DOCS.write_text(replace_table(DOCS.read_text(), '\n'.join(lines), BEGIN, END))


if __name__ == '__main__':
    sys.exit(run_cli(main))
