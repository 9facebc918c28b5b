"""The kernels in Triton compiled for GPUs that are not there: registers, stack, shared memory."""

import json
import os
import re
from importlib.util import find_spec

import pytest
import torch

from dev import gpu_kernels
from dev.gpu_kernels import BEGIN, END, GPUS, SHARED, Kernel, compiled, kernels, main, tables, taken
from mmext_backbones.ops.window_attention.gpu import SPILLED
from mmext_backbones.utils.errors import UserError
from tests.torch_features import needs_target


def needs_compiler(test):
    """Skips a test where Triton cannot compile for a GPU that is not there."""
    reason = 'Triton is not installed, or replaced by its interpreter'
    missing = find_spec('triton') is None or os.environ.get('TRITON_INTERPRET', '0') != '0'
    return needs_target(pytest.mark.skipif(missing, reason=reason)(test))


half, bfloat, single = torch.float16, torch.bfloat16, torch.float32

SAMPLE = [
    (Kernel('window_attention backward', bfloat, 7, 32), 90),
    (Kernel('window_attention backward', half, 12, 32), 80),
    (Kernel('window_attention forward', half, 16, 32), 86),
    (Kernel('elsa backward_logits', bfloat, 7, 32), 90),
    (Kernel('layer_norm backward', bfloat, 1, 1536), 80),
    (Kernel('gelu backward', half, 1, 384), 75),
]
MORE = [
    *((kernel, 80) for kernel in kernels() if kernel.name.startswith('elsa') and kernel.dtype == half),
    (Kernel('window_attention backward', half, 16, 32), 90),
    (Kernel('window_attention backward', half, 12, 32), 100),
    (Kernel('window_attention backward', bfloat, 12, 32), 120),
    (Kernel('window_attention backward', single, 7, 32), 80),
    (Kernel('window_attention forward', single, 7, 32), 86),
    *((Kernel(f'layer_norm {direction}', half, 1, 96), 120) for direction in ('forward', 'backward')),
    (Kernel('layer_norm backward', single, 1, 8192), 75),  # the widest rows
]


@needs_compiler
@pytest.mark.parametrize(
    ('kernel', 'capability'), [*SAMPLE, *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE)], ids=str
)
def test_what_auto_takes_keeps_its_numbers_in_registers_and_fits_the_memory(kernel, capability, monkeypatch, tmp_path):
    """The interpreter takes programs that the compiler does not."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    assert taken(kernel, capability)
    usage, made = compiled(kernel, capability)
    assert usage.registers > 16
    assert usage.stack <= SPILLED
    assert usage.shared <= SHARED[capability] * 1024
    assert not re.search(r'\b(atom|red)\.', made.asm['ptx'])  # the same inputs give the same bits


def test_what_auto_takes():
    """By compute capability, type, window and head width; the table of docs/gpu_kernels.md has the numbers."""
    for capability in SHARED:
        for edge in (7, 12, 16):
            for dtype in (half, bfloat):
                kernel = Kernel('window_attention backward', dtype, edge, 32)
                assert taken(kernel, capability) == (capability >= 80), kernel
        assert taken(Kernel('elsa forward', half, 7, 32), capability)
        assert taken(Kernel('elsa forward', bfloat, 7, 32), capability) == (capability >= 80)
        for kernel in ('layer_norm backward', 'gelu backward'):
            assert taken(Kernel(kernel, half, 1, 96), capability)
            assert taken(Kernel(kernel, bfloat, 1, 96), capability) == (capability >= 80)
    large = Kernel('window_attention forward', single, 12, 32)
    assert [each for each in SHARED if taken(large, each)] == [80, 90, 100]  # 32 KiB of keys; others have 99
    assert not [each for each in SHARED if taken(Kernel('window_attention forward', half, 10, 128), each)]
    for dtype, edge, head_dim in ((half, 7, 128), (half, 10, 64), (bfloat, 12, 64), (single, 7, 64), (single, 12, 32)):
        kernel = Kernel('window_attention backward', dtype, edge, head_dim)  # kilobytes of stack
        assert not [each for each in SHARED if taken(kernel, each)], kernel


def test_what_auto_takes_has_few_bytes_of_stack_in_the_table_of_the_page():
    """All kernels on all GPUs, by their last compilation."""
    text = gpu_kernels.PAGE.read_text()
    rows = [line.strip('|').split('|') for line in text[text.index(BEGIN) : text.index(END)].splitlines()[3:]]
    assert len(rows) == len(list(kernels()))
    cells = [cell.strip() for row in rows for cell in row[4:] if cell.strip()]
    assert len(cells) > 450
    assert max(int(cell.split(' / ')[1]) for cell in cells if not cell.startswith('(')) <= SPILLED


def test_the_table_marks_what_is_left_to_pytorch():
    row = {'name': 'elsa forward', 'dtype': 'float16', 'edge': 7, 'head_dim': 32, 'capability': 80, 'taken': True,
           'registers': 128, 'stack': 8, 'shared': 24 * 1024, 'seconds': 1.0}  # fmt: skip
    other = row | {'capability': 90, 'taken': False, 'stack': 2048}
    failed = {key: value for key, value in row.items() if key not in ('registers', 'stack', 'shared')}
    lines = tables([row, other, failed | {'capability': 120, 'error': 'OutOfResources'}]).splitlines()
    assert lines[0].endswith(f'| sm_80, {GPUS[80]} | sm_90, {GPUS[90]} | sm_120, {GPUS[120]} |')
    assert lines[2] == '| elsa forward | float16 | 7 | 32 | 128 / 8 / 24 | (128 / 2048 / 24) | fails |'


@needs_compiler
@pytest.mark.slow
def test_the_command_writes_numbers_and_page(monkeypatch, tmp_path):
    page, numbers = tmp_path / 'page.md', tmp_path / 'numbers.json'
    page.write_text(f'# Kernels\n\n{BEGIN}\nold\n{END}\nend\n')
    monkeypatch.setattr(gpu_kernels, 'PAGE', page)
    chosen = ['--kernel', 'elsa forward', '--type', 'float16', '--capability', '90']
    main([*chosen, '--jobs', '1', '--page', '--json', str(numbers)])
    (row,) = json.loads(numbers.read_text())['kernels']
    assert row['taken']
    shown = f'{row["registers"]} / {row["stack"]} / {row["shared"] // 1024}'
    assert f'| elsa forward | float16 | 7 | 32 | {shown} |\n{END}\nend\n' in page.read_text()


def test_a_choice_without_a_kernel_is_refused():
    with pytest.raises(UserError, match='no kernel is left'):
        main(['--kernel', 'no such kernel'])
