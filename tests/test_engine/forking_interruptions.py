"""Trainings that are asked to stop, or killed, and go on: the end is that of an unbroken run, bit for bit."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import MMDistributedDataParallel

from mmext_backbones.engine.resume.position import find_checkpoint
from mmext_backbones.engine.resume.signals import EXIT_CODE, SIGNALS, LoaderProcesses, Preempted
from mmext_backbones.weights.loading import read

from .toy import At, LogCapture, fork, forked, free_port, make_hooks, make_run, wait


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def state(runner) -> dict[str, torch.Tensor]:
    """All that a training has learned: weights and averages over the gradients."""
    tensors = {f'model.{name}': value for name, value in runner.model.state_dict().items()}
    for index, values in runner.optim_wrapper.state_dict()['state'].items():
        tensors |= {f'optimizer.{index}.{name}': value for name, value in values.items()}
    for hook in runner.hooks:
        if hasattr(hook, 'ema_model'):
            tensors |= {f'ema.{name}': value for name, value in hook.ema_model.state_dict().items()}
    return {name: torch.as_tensor(value).clone() for name, value in tensors.items()}


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """Plain trainings that nobody stops: `unbroken('iter')` is the runner of one, trained once."""

    @functools.cache
    def train(loop):
        runner = make_run(tmp_path_factory.mktemp('unbroken'), loop)
        runner.train()
        return SimpleNamespace(
            state=state(runner), accuracies=list(runner.message_hub.get_scalar('val/accuracy').data[0])
        )

    return train


def assert_equal(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


def interrupted(folder: Path, iteration: int, stage: str = 'after_train_iter', **options):
    """A run that is stopped once and goes on: the second runner, and the checkpoint between."""
    with pytest.raises(Preempted) as stopped:
        make_run(folder, hooks=[At(iteration, stop, stage)], **options).train()
    assert stopped.value.code == EXIT_CODE == 75
    checkpoint = find_checkpoint(folder, print)
    assert checkpoint == stopped.value.checkpoint
    runner = make_run(folder, resume=checkpoint, **options)
    runner.train()
    return runner, checkpoint


@pytest.mark.parametrize(
    ('loop', 'iteration', 'workers'),
    [('epoch', 10, 0), ('epoch', 10, 2), ('epoch', 14, 0), ('iter', 10, 0), ('iter', 10, 2), ('finite', 10, 0)],
)
def test_a_stopped_training_goes_on_exactly_there(loop, iteration, workers, tmp_path, unbroken):
    runner, checkpoint = interrupted(tmp_path, iteration, loop=loop, workers=workers)
    names = {10: 'epoch_1_iter_10.pth', 14: 'epoch_1_iter_14.pth'} if loop == 'epoch' else {10: 'iter_10.pth'}
    assert Path(checkpoint).name == names[iteration]
    assert_equal(state(runner), unbroken(loop).state)
    assert list(runner.message_hub.get_scalar('val/accuracy').data[0]) == unbroken(loop).accuracies
    if workers == 0:  # what came before is not loaded again
        assert len(runner.train_dataloader.dataset.loaded) <= (21 - iteration) * 4


@pytest.mark.parametrize('fast', [False, True])
@pytest.mark.parametrize('workers', [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_loop_that_skips_by_itself(fast, workers, tmp_path, unbroken):
    """As onedl-mmengine's. Its option to skip nothing is for other loaders: ours starts at the right batch."""
    loop = {'_delete_': True, 'type': 'ToySkippingLoop', 'max_iters': 21, 'val_interval': 7}
    options = {'loop': 'iter', 'workers': workers, 'train_cfg': {**loop, 'fast_forward_on_resume': fast}}
    runner, checkpoint = interrupted(tmp_path, 10, **options)
    assert Path(checkpoint).name == 'iter_10.pth'
    assert_equal(state(runner), unbroken('iter').state)
    if workers == 0:
        assert len(runner.train_dataloader.dataset.loaded) <= (21 - 10) * 4


@pytest.mark.parametrize('kind', ['IterBasedTrainLoop', 'ToySkippingLoop'])
def test_a_loader_that_starts_at_its_first_batch(kind, tmp_path, monkeypatch, unbroken):
    """As where the checkpoint is no one file, and the iteration is known too late: what came before is loaded."""
    monkeypatch.setattr('mmext_backbones.engine.resume.runner.read_meta', lambda path: {})
    loop = {'_delete_': True, 'type': kind, 'max_iters': 21, 'val_interval': 7}
    runner, _ = interrupted(tmp_path, 10, loop='iter', train_cfg=loop)
    assert runner.first_batch == 0
    assert_equal(state(runner), unbroken('iter').state)


@pytest.mark.parametrize(
    ('stage', 'loop'),
    [
        ('after_val_iter', 'epoch'),
        ('after_val_epoch', 'iter'),
        pytest.param('after_val_iter', 'iter', marks=pytest.mark.slow),
        pytest.param('after_val_epoch', 'epoch', marks=pytest.mark.slow),
    ],
)
def test_a_stop_during_validation(stage, loop, tmp_path):
    """With average weights, which stand in for the model's own at that time."""
    options = {'loop': loop, 'custom_hooks': [*make_hooks(), {'type': 'EMAHook', 'momentum': 0.1}]}
    options['default_hooks.checkpoint.save_best'] = 'accuracy'
    unbroken = make_run(tmp_path / 'unbroken', **options)
    unbroken.train()
    for iteration in (14, 21):
        folder = tmp_path / f'{iteration}'
        runner, _ = interrupted(folder, iteration, stage, **options)
        assert_equal(state(runner), state(unbroken))
        expected = unbroken.message_hub.get_scalar('val/accuracy').data[0]
        assert list(runner.message_hub.get_scalar('val/accuracy').data[0]) == list(expected)
        assert runner.message_hub.get_info('best_score') == unbroken.message_hub.get_info('best_score')
        names = [sorted(path.name for path in where.glob('best_*.pth')) for where in (folder, tmp_path / 'unbroken')]
        assert names[0] == names[1]
        assert len(names[0]) == 1


def test_a_stop_waits_for_the_step_of_accumulated_gradients(tmp_path):
    options = {'loop': 'iter', 'optim_wrapper.accumulative_counts': 3}
    unbroken = make_run(tmp_path / 'unbroken', **options)
    unbroken.train()
    runner, checkpoint = interrupted(tmp_path / 'broken', 10, **options)
    assert Path(checkpoint).name == 'iter_12.pth'
    assert_equal(state(runner), state(unbroken))


def test_the_seed_of_the_checkpoint_stays(tmp_path, capsys):
    """Without a seed one is drawn; the order of the data follows from it, and is kept."""
    options = {'loop': 'iter', 'randomness': {}}
    with pytest.raises(Preempted) as stopped:
        make_run(tmp_path, hooks=[At(10, stop)], **options).train()
    seed = read(stopped.value.checkpoint)['meta']['seed']
    runner = make_run(tmp_path, resume=stopped.value.checkpoint, **options)
    assert (runner.seed, runner.train_dataloader.sampler.seed) == (seed, seed)
    make_run(tmp_path, resume=stopped.value.checkpoint, **{**options, 'randomness': {'seed': seed + 1}})
    assert f'Seed {seed}, of the checkpoint, instead of {seed + 1}' in capsys.readouterr().out


def test_other_data_begins_the_epoch_anew(tmp_path):
    with pytest.raises(Preempted) as stopped:
        make_run(tmp_path, hooks=[At(10, stop)]).train()
    options = {'train_dataloader.batch_size': 2}
    runner = make_run(tmp_path, resume=stopped.value.checkpoint, **options)
    with LogCapture(runner) as log:
        runner.train()
    assert 'with 7 batches an epoch' in log.text
    assert 'epoch 2 begins anew' in log.text


def test_no_checkpoint_hook(tmp_path, unbroken):
    runner, checkpoint = interrupted(tmp_path, 8, loop='iter', **{'default_hooks.checkpoint': None})
    assert Path(checkpoint).name == 'iter_8.pth'
    assert_equal(state(runner), unbroken('iter').state)


def test_a_second_signal_stops_at_once(tmp_path):
    """Twice in one iteration: the second has its usual effect, and signals are as before after the training."""
    before = signal.getsignal(signal.SIGINT)

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / 'one', hooks=[At(10, twice)]).train()
    assert signal.getsignal(signal.SIGINT) is before
    assert not list((tmp_path / 'one').glob('*iter*.pth'))

    def child() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    assert forked(lambda: make_run(tmp_path / 'two', hooks=[At(10, child)]).train()) == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize('stage', ['after_train_iter', 'after_val_iter'])
def test_a_pool_forked_from_a_training_ends(stage, tmp_path, capfd):
    """Pools end their processes by SIGTERM and wait for them; mmdet's VOCMetric opens one in each validation."""

    def pool() -> None:
        with multiprocessing.get_context('fork').Pool(2) as processes:
            assert processes.map(abs, [-1, 2]) == [1, 2]
            processes.apply_async(time.sleep, (60,))  # busy when they are ended

    def train() -> None:
        signal.alarm(60)
        make_run(tmp_path, hooks=[At(7, pool, stage)], **{'train_cfg.max_epochs': 1}).train()

    assert forked(train) == 0
    assert 'stopping after' not in capfd.readouterr().err


def test_signals_do_what_they_did_in_forked_processes(tmp_path):
    """One forked from the training, and one from a loader process: each is ended by SIGTERM."""
    ends = []

    def waiting() -> None:
        pid = fork(lambda: time.sleep(60))
        os.kill(pid, signal.SIGTERM)
        ends.append(wait([pid]))

    handlers = [signal.getsignal(number) for number in SIGNALS]
    make_run(tmp_path, hooks=[At(3, waiting)], **{'train_cfg.max_epochs': 1}).train()
    assert ends == [[-signal.SIGTERM]]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers

    def loader_process() -> None:
        LoaderProcesses().guard(loader := SimpleNamespace(worker_init_fn=None))
        loader.worker_init_fn(0)
        waiting()
        os._exit(ends[-1] != [-signal.SIGTERM])

    assert forked(loader_process) == 0


# A process that has imported everything forks one after the other; each of them ends as a whole interpreter does.
ALONE = """
import os, signal, subprocess, sys
from tests.test_engine.toy import At, make_run
for folder in sys.argv[1:]:
    pid = os.fork()
    if pid == 0:
        break
    with open(f'{folder}.end', 'w') as file:
        print(pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=file)
else:
    sys.exit()
os.setsid()
loop, call = os.path.basename(folder).split('_')
others = ['kill', '-TERM', '--', f'-{os.getpid()}']  # not the parent, from which loader processes would take it
calls = {'warn': lambda: subprocess.run(others), 'kill': lambda: os.kill(os.getpid(), signal.SIGKILL)}
options = {f'{name}_dataloader.{key}': value for name in ('train', 'val')
           for key, value in {'num_workers': 2, 'persistent_workers': True, 'dataset.ballast': 200000}.items()}
make_run(folder, loop, hooks=[At(12, calls[call])], **options).train()
"""


@pytest.mark.parametrize(
    'runs', [('epoch_warn', 'iter_kill'), pytest.param(('iter_warn', 'epoch_kill'), marks=pytest.mark.slow)]
)
def test_no_loader_process_ends_early_or_stays(runs, tmp_path):
    """A warning to all processes of a job, and a kill of the first; batches are larger than a pipe."""
    folders = [tmp_path / run for run in runs]
    subprocess.run([sys.executable, '-c', ALONE, *folders], cwd=Path(__file__).parents[2], check=True, timeout=120)
    for folder in folders:
        pid, code = map(int, folder.with_suffix('.end').read_text().split())
        loop, call = folder.name.split('_')
        assert code == (EXIT_CODE if call == 'warn' else -signal.SIGKILL)
        if call == 'warn':
            name = 'epoch_1_iter_12.pth' if loop == 'epoch' else 'iter_12.pth'
            assert Path(find_checkpoint(folder, print)).name == name
        assert_gone(pid)


def assert_gone(group: int) -> None:
    for _ in range(40):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail('a loader process is still there, four seconds later')


def test_processes_agree_and_keep_their_random_states(tmp_path):
    """Two processes, of which one is asked to stop; their dropout differs, and goes on in both."""
    options = {'randomness': {'seed': 3, 'diff_rank_seed': True}}
    options |= {'train_dataloader.batch_size': 2, 'train_dataloader.dataset.length': 28}

    def train(rank: int, port: int, folder: Path, resume: str | None = None, stopped: int | None = None) -> None:
        torch.distributed.init_process_group(
            'gloo', f'tcp://127.0.0.1:{port}', timedelta(seconds=60), world_size=2, rank=rank
        )
        runner = make_run(folder, resume=resume, hooks=[At(10, stop)] if rank == stopped else [], **options)
        runner.model = MMDistributedDataParallel(runner.model)  # mmengine does it on GPUs only
        runner.train()
        if rank == 0:
            torch.save(state(runner), folder / 'state.pth')

    def run(folder: Path, **kwargs) -> list[int]:
        port = free_port()
        return wait([fork(lambda rank=rank: train(rank, port, folder, **kwargs)) for rank in (0, 1)])

    assert run(tmp_path / 'unbroken') == [0, 0]
    assert run(tmp_path / 'broken', stopped=1) == [EXIT_CODE, EXIT_CODE]
    checkpoint = find_checkpoint(tmp_path / 'broken', print)
    assert Path(checkpoint).name == 'epoch_1_iter_10.pth'
    assert run(tmp_path / 'broken', resume=checkpoint) == [0, 0]
    assert_equal(*(torch.load(tmp_path / name / 'state.pth') for name in ('broken', 'unbroken')))
