"""Memory that runs out ends in one message with the settings of the run."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import ValLoop
from torch.utils.data import DataLoader, Dataset

from mmext_backbones.engine.memory import explain_out_of_memory
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.explain import explain, ran_out

ROOT = Path(__file__).parents[2]
BACKBONE = {'type': 'mmext_backbones.SwinTransformer', 'arch': 'tiny'}
CUDA = (
    'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 10.00 GiB of which 1.00 GiB is free.'
)
CPU = "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"


def config(**options):
    resize = {'type': 'RandomResize', 'scale': [(1333, 480), (1333, 800)]}
    loader = {'batch_size': 6, 'num_workers': 4, 'dataset': {'dataset': {'pipeline': [{'type': 'Load'}, resize]}}}
    return Config({
        'model': {'type': 'MaskRCNN', 'backbone': dict(BACKBONE)},
        'train_dataloader': loader,
        'val_dataloader': {'batch_size': 2, 'num_workers': 2, 'dataset': {'pipeline': []}},
        'train_cfg': {'max_iters': 100},
        'optim_wrapper': {'type': 'OptimWrapper', 'accumulative_counts': 2},
    } | options)  # fmt: skip


def message(error, cfg=None, split='train'):
    with pytest.raises(UserError) as caught, explain_out_of_memory(cfg or config(), split):
        raise error
    return str(caught.value)


def row(text, key):
    (line,) = (line for line in text.splitlines() if line.lstrip().startswith(key))
    return ' '.join(line.split())


@pytest.mark.parametrize('error', [torch.cuda.OutOfMemoryError(CUDA), RuntimeError('CUDA error: out of memory')])
def test_a_gpu(error):
    text = message(error)
    assert text.startswith('the memory of the GPU ran out in the training: CUDA ')
    assert row(text, 'train_dataloader.batch_size=6') == (
        'train_dataloader.batch_size=6 -> 3 with optim_wrapper.accumulative_counts=4 (now 2): 12 images a step as now, '
        'for which train_cfg.max_iters=200 (now 100) and the schedule count batches'
    )
    assert '-> True: norms and GELUs' in row(text, 'model.backbone.recompute=auto')
    assert '-> True: activations' in row(text, 'model.backbone.with_cp=False')
    assert row(text, 'no --amp')
    assert row(text, 'no --bf16')
    scale = 'train_dataloader.dataset.dataset.pipeline.1.scale=[(1333,480),(1333,800)]'
    assert row(text, scale) == f'{scale} -> smaller images'
    assert 'num_workers' not in text


def test_what_is_low_already():
    cfg = config(optim_wrapper={'type': 'AmpOptimWrapper'})
    cfg.train_dataloader.batch_size = 1
    cfg.model.backbone.with_cp = cfg.model.backbone.recompute = True
    text = message(torch.cuda.OutOfMemoryError(CUDA), cfg)
    for setting in (
        'train_dataloader.batch_size=1',
        'model.backbone.recompute=True',
        'model.backbone.with_cp=True',
        '--amp',
    ):
        assert '-> nothing: it is' in row(text, setting)
    assert 'bf16' not in text


def test_a_machine():
    for error in (RuntimeError(CPU), MemoryError(), _numpy_error(), OSError(12, 'Cannot allocate memory')):
        text = message(error)
        assert text.startswith('the memory of this machine ran out in the training: ')
        assert row(text, 'train_dataloader.num_workers=4').startswith('train_dataloader.num_workers=4 -> 2')
        assert 'no --bf16' in text
        assert '--amp' not in text


def _numpy_error():
    with pytest.raises(MemoryError) as caught:
        np.empty(2**62, np.uint8)
    return caught.value


def test_validation_is_told_from_training():
    class Loop(ValLoop):
        def __init__(self):
            pass

        def run(self):
            raise torch.cuda.OutOfMemoryError(CUDA)

    with pytest.raises(UserError) as caught, explain_out_of_memory(config(), 'train'):
        Loop().run()
    text = str(caught.value)
    assert 'in the validation' in text
    assert row(text, 'val_dataloader.batch_size=2') == 'val_dataloader.batch_size=2 -> 1'
    assert 'with_cp' not in text


class Broken(Dataset):
    def __init__(self, end):
        self.end = end

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if isinstance(self.end, int):
            os.kill(os.getpid(), self.end)
        raise self.end


@pytest.mark.parametrize(
    ('end', 'what', 'setting'),
    [
        (signal.SIGKILL, 'the memory of this machine', 'train_dataloader.num_workers=4'),
        (signal.SIGBUS, 'the shared memory (/dev/shm)', '/dev/shm of '),
        (MemoryError(), 'the memory of this machine', 'train_dataloader.num_workers=4'),
    ],
    ids=['SIGKILL', 'SIGBUS', 'MemoryError'],
)
def test_a_worker_that_dies(end, what, setting):
    """Not simulated: torch's own messages for workers that end so."""
    end = int(end) if isinstance(end, signal.Signals) else end
    with pytest.raises(UserError) as caught, explain_out_of_memory(config(), 'train'):
        list(DataLoader(Broken(end), num_workers=1))
    text = str(caught.value)
    assert text.startswith(what)
    assert row(text, setting)


def test_a_limit_of_the_system(fresh):
    """Not simulated: torch and numpy under RLIMIT_AS."""
    code = (
        'import resource, sys, numpy, torch\n'
        'from mmengine.config import Config\n'
        'from mmext_backbones.engine.memory import explain_out_of_memory\n'
        'from mmext_backbones.utils.cli import run_cli\n'
        "cfg = Config({'model': {}, 'train_dataloader': {'batch_size': 4, 'num_workers': 0}})\n"
        'used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()\n'
        'resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n'
        'def main(argv, make):\n'
        "    with explain_out_of_memory(cfg, 'train'):\n"
        '        return [make() for _ in range(100)] and 0\n'
        'makers = (lambda: torch.ones(2**25), lambda: numpy.ones(2**25, numpy.float32), lambda: bytearray(2**27))\n'
        'sys.exit([run_cli(lambda argv: main(argv, make), []) for make in makers] != [2, 2, 2])\n'
    )
    result = fresh().run(code)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count('Error: the memory of this machine ran out in the training') == 3
    assert result.stderr.count('train_dataloader.batch_size=4') == 3
    assert 'Traceback' not in result.stderr


def test_other_errors_keep_their_tracebacks():
    with pytest.raises(RuntimeError, match='shapes'), explain_out_of_memory(config(), 'train'):
        raise RuntimeError('shapes do not agree')
    with pytest.raises(UserError, match=r'^mine$'), explain_out_of_memory(config(), 'train'):
        raise UserError('mine') from MemoryError()
    assert ran_out(RuntimeError('x')) is None
    assert explain(MemoryError('x')) == 'the memory of this machine ran out: x'
    assert explain(RuntimeError('x')) is None
