"""The command line of dev/gpu_check, and the order of the steps."""

import argparse
import json
import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from dev.benchmark.cases import CASES
from dev.benchmark.machine import describe
from dev.benchmark.timing import MODES
from mmext_backbones.ops.gpu_support import is_interpreted, no_triton
from mmext_backbones.utils.errors import UserError

from .operators import DTYPES, cases, check, compile_all
from .page import write_page
from .steps import Steps
from .times import SIZES, operator_times, time_network, time_operator

BUDGET = 450  # seconds of the eight minutes; importing torch and ending take the rest
SPARE = 15  # seconds after which a step that does not end is ended


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog='python -m dev.gpu_check', description='Checks and times everything on a GPU.')
    made.add_argument('--json', type=Path, metavar='FILE', help='where the results go, after each step')
    made.add_argument('--budget', type=float, default=BUDGET, metavar='SECONDS', help='for all steps')
    made.add_argument('--dry', action='store_true', help="on the CPU, in Triton's interpreter, at tiny sizes")
    made.add_argument('--only', nargs='+', default=[], metavar='PART', help='steps whose name has one of these parts')
    made.add_argument('--page', type=Path, metavar='JSON', help='write the table of docs/performance.md, run nothing')
    made.add_argument('--traceback', action='store_true', help='the whole traceback after an error')
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the steps, or writes the page; 1 where an operator is wrong or a step failed.

    Raises:
        UserError: without a GPU, or Triton.
    """
    args = parser().parse_args(argv)
    if args.page is not None:
        write_page(args.page)
        return 0
    device = torch.device('cpu' if args.dry else 'cuda')
    if not args.dry and not torch.cuda.is_available():
        raise UserError('torch finds no GPU here; --dry runs all of it on a CPU')
    if (problem := no_triton()) is not None:
        raise UserError(f'{problem}; the check is of the kernels in Triton')
    os.environ['MMEXT_SELF_CHECK'] = '0'  # a wrong kernel is to be seen here
    steps = Steps(args.budget, args.json, {'dry': args.dry, 'machine': _machine(device)})
    steps.end_in_time(SPARE)
    run_all(steps, device, args.dry, args.only)
    print(json.dumps(summary(steps.results), indent=1))
    return int(bool(steps.results['errors']) or any(row['right'] is False for row in steps.results.get('checks', ())))


def run_all(steps: Steps, device: torch.device, dry: bool, only: Sequence[str] = ()) -> None:
    """All steps in their order."""
    rounds, warmup = (1, 0) if dry else (10, 5)

    def step(kind: str, name: str, function, needs: float) -> None:
        if not only or any(part in f'{kind} {name}' for part in only):
            steps.run(kind, name, function, 0 if dry else needs)

    chosen, dtypes = cases(dry), [*DTYPES]
    torch.backends.cudnn.allow_tf32 = False  # of convolutions, for the comparison
    if not is_interpreted():
        step('compiled', 'all kernels', lambda: compile_all(chosen, dtypes, device), 30)
    for dtype, case in product(dtypes, chosen):
        step('checks', f'{case.name}, {dtype}', lambda c=case, d=dtype: check(c, d, device), 5)
    torch.backends.cudnn.allow_tf32 = True
    for name, sides, case, types in operator_times(dry):
        for dtype in types:
            step(
                'operators',
                f'{name}, {dtype}',
                lambda n=name, s=sides, c=case, d=dtype: time_operator(n, s, c, d, device, rounds, warmup),
                5,
            )
    compiler = 'eager' if dry else 'inductor'
    for backend, network, mode in product((None, compiler), SIZES, MODES):
        step(
            'networks' if backend is None else 'compiled networks',
            f'{network}, bf16, {mode}',
            lambda n=network, m=mode, b=backend: time_network(CASES[n], 'bf16', m, b, device, dry, rounds, warmup),
            10 if backend is None else 60,
        )


def _machine(device: torch.device) -> dict[str, Any]:
    found = {'torch': torch.__version__, 'interpreter': is_interpreted()}
    try:
        found |= describe(device)
    except Exception as error:  # of packages whose versions nobody knows
        found['not described'] = f'{type(error).__name__}: {error}'
    if device.type == 'cuda':
        found['accelerator'] = torch.cuda.get_device_name(device)
        found['capability'] = '.'.join(map(str, torch.cuda.get_device_capability(device)))
    return found


def summary(results: dict[str, Any]) -> dict[str, Any]:
    """What is wrong and what is missing."""
    checks = results.get('checks', [])
    return {
        'right': sum(row['right'] is True for row in checks),
        'wrong': [row for row in checks if row['right'] is False],
        'refused': [row for row in checks if row['right'] is None],
        'timed': sum(len(results.get(kind, [])) for kind in ('operators', 'networks', 'compiled networks')),
        'errors': results['errors'],
        'left_out': results['left_out'],
        'seconds': results.get('seconds'),
    }
