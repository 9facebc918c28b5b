"""Two processes on the CPU do what one process does with their batches together, whole or sharded."""

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch

from mmext_backbones.engine import strategies
from mmext_backbones.engine.strategies import FSDPStrategy
from mmext_backbones.utils.errors import UserError
from mmext_backbones.zoo import block_classes
from tests.test_engine import several_processes

try:
    torch.cpu.Stream(priority=0)
    SHARDS_ON_CPU = True
except TypeError:  # torch 2.1
    SHARDS_ON_CPU = False
needs_shards = pytest.mark.skipif(not SHARDS_ON_CPU, reason=f'FSDP of torch {torch.__version__} needs a GPU')
FSDP = {'runner_type': 'FlexibleRunner', 'strategy': {'type': 'mmext_backbones.FSDPStrategy'}}
OTHERS = {name: {'model': {'backbone': name}, 'iters': 10} for name in ('ELSASwin', 'MaxViT', 'Sequencer2D')}
ACCUMULATED = {'iters': 40, 'accumulate': 2, 'param_scheduler': None}
TIMEOUT = 300  # seconds for both processes, which take 20 on an idle machine
# Sums over the batch in another order: a few roundings of float32 at values of order one, after 20 steps of AdamW
CLOSE = {'rtol': 0, 'atol': 5e-6}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Where all runs are, with one thread for those in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp('strategies')
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def runs(folder):
    """Runs by name: their losses and their last checkpoints. Two processes make all those of two, one by one."""
    done = {
        'one': several_processes.run(folder / 'one', batch=4),
        'one, even rate': several_processes.run(folder / 'even', batch=4, param_scheduler=None),
        'accumulated': several_processes.run(folder / 'accumulated', batch=2, **ACCUMULATED),
    }
    half = folder / 'one' / 'iter_10.pth'
    jobs = {'ddp': {'batch': 2}}
    if SHARDS_ON_CPU:
        jobs |= {
            'fsdp': {'batch': 2, **FSDP},
            'fsdp, resumed': {'batch': 2, 'resume': True, 'load_from': str(folder / 'fsdp' / 'iter_10.pth'), **FSDP},
            'fsdp, resumed from one': {'batch': 2, 'resume': True, 'load_from': str(half), **FSDP},
            'fsdp, checkpointed': {'batch': 2, 'model': {'with_cp': (0,)}, **FSDP},
            'fsdp, accumulated': {'batch': 1, **ACCUMULATED, **FSDP},
            **{f'fsdp, {backbone}': {'batch': 2, **job, **FSDP} for backbone, job in OTHERS.items()},
        }
        for backbone, job in OTHERS.items():
            done[f'one, {backbone}'] = several_processes.run(folder / f'one {backbone}', batch=4, **job)
    done |= in_two_processes(jobs, folder)
    if SHARDS_ON_CPU:
        half = folder / 'fsdp' / 'iter_10.pth'
        done['one, resumed from fsdp'] = several_processes.run(
            folder / 'back', batch=4, resume=True, load_from=str(half)
        )
    return done


def in_two_processes(jobs: dict[str, dict], folder: Path) -> dict[str, dict]:
    """What came of every job."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('spawn')
    both = [
        context.Process(target=several_processes.worker, args=(rank, 2, port, jobs, str(folder))) for rank in range(2)
    ]
    for process in both:
        process.start()
    try:
        for process in both:
            process.join(TIMEOUT)
        assert [process.exitcode for process in both] == [0, 0], 'a process failed, or took too long'
    finally:
        for process in both:
            process.kill()
    return torch.load(folder / 'results.pth')


def weights(run: dict) -> dict[str, torch.Tensor]:
    return torch.load(run['checkpoint'], weights_only=False)['state_dict']


@pytest.mark.slow
def test_it_learns(runs):
    assert sum(runs['one']['losses'][-4:]) < 0.6 * sum(runs['one']['losses'][:4])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ddp', pytest.param('fsdp', marks=needs_shards)])
def test_two_processes_are_one_with_twice_the_batch(runs, name):
    assert_as_one(runs, name)


@needs_shards
@pytest.mark.slow
def test_checkpointed_blocks_in_shards(runs):
    assert_as_one(runs, 'fsdp, checkpointed')


def assert_as_one(runs, name):
    assert len(runs[name]['losses']) == 20
    assert runs[name]['losses'] == pytest.approx(runs['one']['losses'], rel=0, abs=CLOSE['atol'])
    torch.testing.assert_close(weights(runs[name]), weights(runs['one']), **CLOSE)


@needs_shards
@pytest.mark.slow
@pytest.mark.parametrize('backbone', OTHERS)
def test_every_backbone_in_shards(runs, backbone):
    torch.testing.assert_close(weights(runs[f'fsdp, {backbone}']), weights(runs[f'one, {backbone}']), **CLOSE)


@pytest.mark.slow
def test_accumulated_batches_are_one_batch(runs):
    assert_accumulated(runs, 'accumulated')


@needs_shards
@pytest.mark.slow
def test_accumulated_batches_in_shards(runs):
    assert_accumulated(runs, 'fsdp, accumulated')


def assert_accumulated(runs, name):
    losses = runs[name]['losses']
    steps = [(first + second) / 2 for first, second in zip(losses[::2], losses[1::2], strict=True)]
    assert steps == pytest.approx(runs['one, even rate']['losses'], rel=0, abs=CLOSE['atol'])
    torch.testing.assert_close(weights(runs[name]), weights(runs['one, even rate']), **CLOSE)


@pytest.mark.slow
@needs_shards
@pytest.mark.parametrize('name', ['fsdp, resumed', 'fsdp, resumed from one', 'one, resumed from fsdp'])
def test_a_run_goes_on_with_or_without_shards(runs, name):
    assert runs[name]['losses'] == pytest.approx(runs['one']['losses'][10:], rel=0, abs=CLOSE['atol'])
    torch.testing.assert_close(weights(runs[name]), weights(runs['one']), **CLOSE)


@pytest.mark.slow
@needs_shards
def test_a_sharded_run_leaves_a_plain_checkpoint(runs):
    """Loaded by a plain model with every key, and the optimizer's options are those of the plain run."""
    model = several_processes.Regressor()
    model.load_state_dict(weights(runs['fsdp']), strict=True)
    plain, sharded = (
        torch.load(runs[name]['checkpoint'], weights_only=False)['optimizer']['param_groups']
        for name in ('one', 'fsdp')
    )
    # custom_keys over two levels: the half rate of one norm would be lost in the names of wrapped blocks
    for key in ('lr', 'weight_decay'):
        assert [group[key] for group in sharded] == pytest.approx([group[key] for group in plain])
    assert len({group['lr'] for group in plain}) == 2


def test_units_are_the_blocks_of_every_backbone():
    assert {cls.__name__ for cls in block_classes()} == {'TransformerBlock', 'MaxViTBlock'}


def test_a_torch_that_shards_on_gpus_only_is_named(monkeypatch):
    class NoPriority:
        pass

    monkeypatch.setattr(strategies, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.cpu, 'Stream', NoPriority)
    with pytest.raises(UserError, match=r'^FSDP of torch .* on GPUs only: take torch 2.2 or later, or train'):
        FSDPStrategy()


def test_flat_parameters_are_refused():
    with pytest.raises(ValueError, match='use_orig_params=False: expected True'):
        FSDPStrategy(model_wrapper={'use_orig_params': False})
