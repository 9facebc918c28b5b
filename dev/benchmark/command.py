"""The command line of dev/benchmark."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mmext_backbones.utils.cli import add_traceback_option
from mmext_backbones.utils.errors import UserError, did_you_mean

from .case import Case, absence
from .cases import CASES, DEFAULT_CASES
from .chart import draw_growth, draw_ratios
from .growth import grow
from .machine import describe
from .report import growth_lines, heading, legend, line, markdown, write_json
from .session import LeftOut, Options, Row, compare, compile_modes
from .timing import DTYPES, MODES

__all__ = ['benchmark', 'parser']

NETWORKS = tuple(name for name in CASES if not name.startswith('op:') and '_vs_' not in name)
EDGES = (224, 448, 672, 896, 1120, 1344, 1568, 1792, 2048)


def parser(description: str) -> argparse.ArgumentParser:
    """The options, with their defaults."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add('cases', nargs='*', metavar='CASE', help=f'of {", ".join(CASES)}; by default {", ".join(DEFAULT_CASES)}')
    add('--arch', help='as in ARCHS, for every case; by default the smallest of each')
    add('--size', type=int, nargs=2, action='append', metavar=('H', 'W'), help='of the image in pixels; repeatable')
    add('--batch', type=int, default=1, help='images')
    add('--peer', nargs='+', default=[], metavar='NAME', help='these alone; a peer that is not installed is an error')
    add('--mode', nargs='+', choices=MODES, default=list(MODES))
    add('--dtype', nargs='+', choices=list(DTYPES), default=['fp32'], help='bf16 and fp16 by autocast')
    add('--device', choices=['cpu', 'cuda'], default='cpu')
    add('--rounds', type=int, default=7, help='that count')
    add('--warmup', type=int, help='rounds before them; 2 on the CPU, 10 on CUDA')
    add('--threads', type=int, help="of the CPU; by default torch's choice")
    add(
        '--compile', nargs='?', const='inductor', metavar='NAME',
        help='also both compiled, and the peer alone: by a backend of torch.compile, or in a mode like reduce-overhead',
    )  # fmt: skip
    add('--growth', action='store_true', help='ours alone: time against size and batch, with fitted exponents')
    add('--edges', type=int, nargs='+', default=list(EDGES), metavar='PIXELS', help='of the square images of --growth')
    add('--batches', type=int, nargs='+', default=[1, 2, 4, 8], metavar='N', help='of --growth, of the smallest image')
    add('--no-memory', action='store_true', help='leave the peaks out: they take a fresh process each')
    add('--json', metavar='FILE', help='machine, options, rows and every sample')
    add('--markdown', action='store_true', help='the rows as docs/performance.md has them, at the end')
    add('--chart', metavar='FILE', help='PNG, SVG or PDF')
    add_traceback_option(made)
    return made


def benchmark(args: argparse.Namespace) -> int:
    """Do what was asked for; 1 where something that should have been timed was not.

    Raises:
        UserError: for an unknown case, peer or arch, a peer named and not installed, or what cannot be run here.
    """
    cases = _cases(args.cases or (NETWORKS if args.growth else DEFAULT_CASES), args)
    _check(args, cases)
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == 'cuda':  # float32 is float32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    warmup = args.warmup if args.warmup is not None else (10 if device.type == 'cuda' else 2)
    machine = describe(device)
    print(
        f'{machine.get("accelerator", machine["processor"])}, {machine["threads"]} threads, '
        f'torch {torch.__version__}, {args.rounds} rounds after {warmup}',
        flush=True,
    )
    found: dict[str, Any] = {'machine': machine, 'options': _options(args, warmup)}
    return _growth(args, cases, device, warmup, found) if args.growth else _compare(args, cases, device, warmup, found)


def _compare(args, cases: Sequence[Case], device: torch.device, warmup: int, found: dict[str, Any]) -> int:
    options = Options(
        args.arch, [tuple(size) for size in args.size or ()], args.batch, args.peer, args.mode, args.dtype, device,
        args.rounds, warmup, args.compile, not args.no_memory,
    )  # fmt: skip
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    shown = None
    for one in compare(cases, options):
        if isinstance(one, LeftOut):
            left_out.append(one)
            print(f'left out: {one.what}: {one.reason}', flush=True)
            continue
        rows.append(one)
        if shown != (one.case, one.size):
            shown = one.case, one.size
            print('\n'.join(heading(one)))
        print(line(one), flush=True)
        if args.json:  # after every row: a long run that is stopped leaves what it has
            write_json(args.json, found | _results(rows, left_out))
    print('\n'.join(legend(left_out)))
    if args.markdown:
        print('\n'.join(['', *map(markdown, rows)]))
    if args.json:
        write_json(args.json, found | _results(rows, left_out))
    if args.chart and rows:
        draw_ratios(rows, args.chart)
    return int(any(one.failed for one in left_out) or not rows)


def _results(rows: Sequence[Row], left_out: Sequence[LeftOut]) -> dict[str, Any]:
    return {'rows': [row.to_dict() for row in rows], 'left_out': [vars(one) for one in left_out]}


def _growth(args, cases: Sequence[Case], device: torch.device, warmup: int, found: dict[str, Any]) -> int:
    growths = []
    for case in cases:
        for mode in args.mode:
            for dtype in args.dtype:
                arch = args.arch or next(iter(case.archs))
                task = case, arch, args.edges, args.batches, mode, DTYPES[dtype], device, args.rounds, warmup
                growths.append(grow(*task))
                print('\n'.join(growth_lines(growths[-1:])), flush=True)
                if args.json:
                    write_json(args.json, found | {'growth': growths})
    if args.chart:
        draw_growth(growths, args.chart)
    return 0


def _options(args: argparse.Namespace, warmup: int) -> dict[str, Any]:
    left = ('traceback', 'json', 'chart', 'markdown')
    return {key: value for key, value in vars(args).items() if key not in left} | {'warmup': warmup}


def _cases(names: Sequence[str], args: argparse.Namespace) -> list[Case]:
    for name in names:
        if name not in CASES:
            raise UserError(f'no case {name!r}.{did_you_mean(name, list(CASES))}\nCases: {", ".join(CASES)}.')
        if args.growth and name not in NETWORKS:
            raise UserError(f'--growth times whole networks of ours: expected {", ".join(NETWORKS)}, not {name!r}')
    return [CASES[name] for name in names]


def _check(args: argparse.Namespace, cases: Sequence[Case]) -> None:
    for name in ('batch', 'rounds', 'threads'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f'--{name} {getattr(args, name)}: expected at least 1')
    for H, W in args.size or ():
        if min(H, W) < 1:
            raise UserError(f'--size {H} {W}: expected positive numbers of pixels')
    if args.growth and (len(set(args.edges)) < 2 and len(set(args.batches)) < 2):
        raise UserError('--growth: expected at least two --edges or two --batches')
    if args.growth and min(*args.edges, *args.batches) < 1:
        raise UserError('--growth: expected --edges and --batches of at least 1')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise UserError('--device cuda: torch sees no CUDA device here')
    for case in cases:
        if args.arch is not None and args.arch not in case.archs:
            raise UserError(f'--arch {args.arch}: {case.name} has {", ".join(case.archs)}')
    if args.compile is not None:
        _check_compile(args.compile)
    known = {peer.name: peer for case in cases for peer in case.peers}
    for name in args.peer:
        if name not in known:
            raise UserError(f'no peer {name!r}.{did_you_mean(name, list(known))}\nPeers: {", ".join(known)}.')
        reason = absence(known[name])
        if reason:
            raise UserError(f'--peer {name}: it cannot be imported here ({reason})')
    for name in ('json', 'chart'):
        path = getattr(args, name)
        if path and not Path(path).resolve().parent.is_dir():
            raise UserError(f'--{name} {path}: there is no folder {Path(path).parent}')
    if args.chart and Path(args.chart).suffix not in ('.png', '.svg', '.pdf'):
        raise UserError(f'--chart {args.chart}: expected a name that ends in .png, .svg or .pdf')
    if args.chart and find_spec('matplotlib') is None:
        raise UserError('--chart needs matplotlib, which is not installed')


def _check_compile(name: str) -> None:
    import torch._dynamo

    modes, backends = compile_modes(), torch._dynamo.list_backends(exclude_tags=())
    if name not in (*modes, *backends):
        raise UserError(
            f'--compile {name}: torch.compile knows no such backend or mode.'
            f'{did_you_mean(name, [*modes, *backends])}\nBackends: {", ".join(backends)}.\nModes: {", ".join(modes)}.'
        )
