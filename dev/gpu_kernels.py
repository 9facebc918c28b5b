"""Registers, stack and shared memory of every kernel in Triton on every GPU, read from the machine code.

No GPU is needed: Triton compiles for those that are not there, and brings the tools that read what it made.

python dev/gpu_kernels.py --page                       # the table of docs/gpu_kernels.md: about 20 minutes of one core
python dev/gpu_kernels.py --capability 80 --kernel window --edge 12 --json made.json
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmext_backbones.analysis.estimate_table import replace_table
from mmext_backbones.ops.elsa import gpu as elsa
from mmext_backbones.ops.gpu_support import BFLOAT16
from mmext_backbones.ops.gpu_support import CAPABILITY as OF_ROWS
from mmext_backbones.ops.layer_norm import gpu as layer_norm
from mmext_backbones.ops.norm_gelu import gpu as gelu
from mmext_backbones.ops.window_attention import gpu as windows
from mmext_backbones.utils.cli import add_traceback_option, run_cli
from mmext_backbones.utils.errors import UserError

PAGE = Path(__file__).parents[1] / 'docs/gpu_kernels.md'
BEGIN, END = '<!-- begin kernels -->', '<!-- end kernels -->'
KIB = 1024
# compute capability -> shared memory that a program may have, in KiB (CUDA C++ programming guide, technical
# specifications per compute capability)
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
GPUS = {75: 'T4', 80: 'A100', 86: 'RTX 30', 89: 'RTX 40, L4', 90: 'H100', 100: 'B200', 120: 'RTX 50'}
TYPES = {torch.float16: '*fp16', torch.bfloat16: '*bf16', torch.float32: '*fp32'}
WINDOWS = (
    7,
    10,
    12,
)  # one for each block of tokens, 64, 128 and 256: 8 x 8 takes the kernel of 7 x 7, 16 x 16 that of 12 x 12
HEAD_DIMS = 32, 64, 128
KERNEL_SIZE = 7  # of ELSA
CHANNELS = 96, 1536  # of norms; GELU takes 128 at a time of any


class Kernel(NamedTuple):
    """One kernel as it is compiled.

    Attributes:
        name: operator and direction.
        dtype: of the maps.
        edge: of the window or the neighbourhood; 1 for norms and GELU, which look at each token alone.
        head_dim: channels of a head, or of a token.
    """

    name: str
    dtype: torch.dtype
    edge: int
    head_dim: int


class Usage(NamedTuple):
    """What a kernel takes of a GPU.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread.
        shared: bytes of shared memory of a program.
        seconds: that compiling took.
    """

    registers: int
    stack: int
    shared: int
    seconds: float


def kernels() -> Iterator[Kernel]:
    """All of them, window attention first."""
    for dtype in TYPES:
        for head_dim in HEAD_DIMS:
            for direction in ('forward', 'backward'):
                for edge in WINDOWS:
                    yield Kernel(f'window_attention {direction}', dtype, edge, head_dim)
    for dtype in TYPES:
        for direction in ('forward', 'backward_values', 'backward_logits', 'backward_static'):
            yield Kernel(f'elsa {direction}', dtype, KERNEL_SIZE, 32)
    for dtype in TYPES:
        for channels in CHANNELS:
            yield Kernel('layer_norm forward', dtype, 1, channels)
            yield Kernel('layer_norm backward', dtype, 1, channels)
        yield Kernel('gelu backward', dtype, 1, 4 * CHANNELS[0])


def is_compiled(kernel: Kernel, capability: int) -> bool:
    """Whether a GPU of this compute capability is one that the kernel is for."""
    least = {'elsa': elsa.CAPABILITY, 'window_attention': windows.CAPABILITY}.get(kernel.name.split()[0], OF_ROWS)
    return divmod(capability, 10) >= (max(least, BFLOAT16) if kernel.dtype == torch.bfloat16 else least)


def taken(kernel: Kernel, capability: int) -> bool:
    """Whether 'auto' takes a kernel on a GPU of this compute capability."""
    if not is_compiled(kernel, capability):
        return False
    operator, direction = kernel.name.split()
    if operator != 'window_attention':
        return True
    size = kernel.dtype, kernel.head_dim, kernel.edge**2
    fits = windows.does_not_fit(*size, windows.largest_block(SHARED[capability] * KIB)) is None
    return fits and not windows.spills(divmod(capability, 10), *size, direction == 'backward')


def compiled(kernel: Kernel, capability: int) -> tuple[Usage, Any]:
    """What a kernel takes on a GPU that need not be there, and what Triton made."""
    operator, direction = kernel.name.split()
    function, types, options = OPERATORS[operator](kernel, direction)
    types |= dict.fromkeys(('bias', 'padding', 'sums_bias', 'sums_padding', 'lse', 'add', 'sums_add'), '*fp32')
    types |= dict.fromkeys(('weight', 'sums', 'skip', 'grad_x'), '*fp32') | {'eps': 'fp32'}
    constants = {name: options[name] for name in function.arg_names if name in options}
    compiler = {name: options[name] for name in ('num_warps', 'num_stages') if name in options}
    began = time.monotonic()
    made = compiled_kernel(function, types, constants, capability, [['tt.divisibility', 16]], **compiler)
    seconds = time.monotonic() - began
    return Usage(*usage(made.asm['cubin']), made.metadata.shared, seconds), made


def _of_windows(kernel: Kernel, direction: str) -> tuple[Any, dict, dict]:
    heads, edge = 4, kernel.edge
    C3 = 3 * heads * kernel.head_dim
    qkv = torch.empty(1, 2 * edge + 1, 2 * edge + 1, C3, dtype=kernel.dtype, device='meta')
    options = windows.options_of(qkv, True, heads, (edge, edge), edge // 2, False, direction == 'backward')
    types = dict.fromkeys(('qkv', 'out', 'grad', 'grad_qkv'), TYPES[kernel.dtype]) | {'scale': 'fp32'}
    return getattr(windows.kernels(), direction), types, options


def _of_elsa(kernel: Kernel, direction: str) -> tuple[Any, dict, dict]:
    v = torch.empty(1, 16, 16, 3 * kernel.head_dim, device='meta')
    options = elsa.Blocks(v, 3, kernel.edge).options | {'CHUNKS': elsa.CHUNKS}
    types = dict.fromkeys(('v', 'logits', 'out', 'grad', 'grad_v', 'grad_logits'), TYPES[kernel.dtype])
    return getattr(elsa.kernels(), direction), types, options


def _of_layer_norm(kernel: Kernel, direction: str) -> tuple[Any, dict, dict]:
    """As under autocast: of a map in float32."""
    types = dict.fromkeys(('grad', 'y'), TYPES[kernel.dtype]) | {'x': '*fp32'}
    return getattr(layer_norm.kernels(), direction), types, layer_norm.options_of(kernel.head_dim)


def _of_gelu(kernel: Kernel, direction: str) -> tuple[Any, dict, dict]:
    types = dict.fromkeys(('grad', 'x', 'y'), TYPES[kernel.dtype])
    return getattr(gelu.kernels(), direction), types, gelu.OPTIONS | {'TANH': False}


OPERATORS = {'window_attention': _of_windows, 'elsa': _of_elsa, 'layer_norm': _of_layer_norm, 'gelu': _of_gelu}


def compiled_kernel(function, types, constants, capability, pointers=None, **options):
    """A kernel of Triton compiled for a GPU that need not be there.

    Args:
        function: the kernel.
        types: of its arguments; what is missing is a 32-bit integer.
        constants: values of those that are constants.
        capability: of the GPU, 80 for 8.0.
        pointers: what to know of pointers, and of the number of channels `C`, from Triton 3.2 on.
        options: of the compiler.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = function.arg_names
    if tuple(map(int, triton.__version__.split('.')[:2])) < (3, 2):
        signature = {name: types.get(name, 'i32') for name in names if name not in constants}
        source = ASTSource(function, signature, constants)
    else:
        signature = {name: 'constexpr' if name in constants else types.get(name, 'i32') for name in names}
        places = {(i,): constants[name] for i, name in enumerate(names) if name in constants}
        attributes = pointers and {
            (i,): pointers for i, name in enumerate(names) if signature[name][0] == '*' or name == 'C'
        }
        source = ASTSource(function, signature, places, attributes)
    return triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)


def usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, by the tool that Triton brings."""
    import triton

    tool = Path(triton.__file__).with_name('backends') / 'nvidia/bin/cuobjdump'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'kernel.cubin')
        path.write_bytes(cubin)
        said = subprocess.run([tool, '-res-usage', path], capture_output=True, text=True, check=True).stdout
    found = re.search(r'REG:(\d+) STACK:(\d+)', said)
    if found is None:
        raise RuntimeError(f'{tool} says nothing of registers: {said[:200]}')
    return int(found[1]), int(found[2])


# --------------------------------------------------------------------------------------------------------------------
# The tables


def measure(chosen: Sequence[tuple[Kernel, int]], jobs: int) -> list[dict[str, Any]]:
    """A row for each kernel and compute capability; what the compiler refuses has an error in place of numbers."""

    def row(case: tuple[Kernel, int]) -> dict[str, Any]:
        kernel, capability = case
        known = {**kernel._asdict(), 'dtype': _name(kernel.dtype), 'capability': capability}
        known['taken'] = taken(kernel, capability)
        try:
            known |= compiled(kernel, capability)[0]._asdict()
        except Exception as error:  # whatever the compiler raises
            known['error'] = f'{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}'
        print(json.dumps(known), file=sys.stderr, flush=True)
        return known

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(row, chosen))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each kernel, a column for each GPU; in brackets what 'auto' leaves to PyTorch."""
    capabilities = sorted({row['capability'] for row in rows})
    lines = [
        '| kernel | type | edge | channels | ' + ' | '.join(f'sm_{each}, {GPUS[each]}' for each in capabilities) + ' |',
        '|---|---|--:|--:|' + '---|' * len(capabilities),
    ]
    cells: dict[tuple, dict[int, str]] = {}
    for row in rows:
        key = row['name'], row['dtype'], row['edge'], row['head_dim']
        cells.setdefault(key, {})[row['capability']] = _cell(row)
    for key, found in cells.items():
        lines.append('| ' + ' | '.join([*map(str, key), *(found.get(each, '') for each in capabilities)]) + ' |')
    return '\n'.join(lines)


def _cell(row: dict[str, Any]) -> str:
    if 'error' in row:
        return '(fails)' if not row['taken'] else 'fails'
    text = f'{row["registers"]} / {row["stack"]} / {row["shared"] // KIB}'
    return text if row['taken'] else f'({text})'


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--capability', type=int, nargs='+', default=list(SHARED), choices=list(SHARED))
    parser.add_argument('--kernel', default='', help='only kernels whose name has this part')
    parser.add_argument('--type', nargs='+', help='only kernels of these types, as float16')
    parser.add_argument('--edge', type=int, nargs='+', help='only windows and neighbourhoods of these edges')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='kernels that are compiled at a time')
    parser.add_argument('--json', type=Path, help='also write all numbers to this file')
    parser.add_argument('--page', action='store_true', help='put the table into docs/gpu_kernels.md')
    parser.add_argument('--taken', action='store_true', help="only what 'auto' takes")
    add_traceback_option(parser)
    args = parser.parse_args(argv)
    chosen = [
        (kernel, capability)
        for kernel in kernels()
        for capability in args.capability
        if args.kernel in kernel.name and (not args.edge or kernel.edge in args.edge)
        if not args.type or _name(kernel.dtype) in args.type
        if (taken if args.taken else is_compiled)(kernel, capability)
    ]
    if not chosen:
        raise UserError('no kernel is left: see --kernel, --type, --edge and --capability')
    rows = measure(chosen, args.jobs)
    if args.json:
        import triton

        versions = {'triton': triton.__version__, 'torch': torch.__version__, 'python': platform.python_version()}
        args.json.write_text(json.dumps({'versions': versions, 'kernels': rows}, indent=1) + '\n')
    if args.page:
        PAGE.write_text(replace_table(PAGE.read_text(), tables(rows), BEGIN, END))
    else:
        print(tables(rows))


if __name__ == '__main__':
    sys.exit(run_cli(main))
