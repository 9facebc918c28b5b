"""Checkpoints under kills, on full disks, and after damage."""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from mmengine.fileio import LocalBackend

from mmext_backbones.engine.resume.checkpoint_hook import NoRoom
from mmext_backbones.engine.resume.position import find_checkpoint
from mmext_backbones.engine.resume.runner import _num_bytes
from mmext_backbones.engine.resume.signals import EXIT_CODE, Preempted
from mmext_backbones.utils import files
from mmext_backbones.utils.errors import UserError
from mmext_backbones.weights.loading import read

from .toy import At, LogCapture, forked, make_run

# Where a process is killed: a function of ours or of mmengine's, the name of the file it is about, before or after it.
MOMENTS = {
    'half written': (LocalBackend, 'put', 'iter_10.pth', 'half'),
    'written': (LocalBackend, 'put', 'iter_10.pth', 'after'),
    'before the rename': (os, 'replace', 'iter_10.pth', 'before'),
    'renamed': (os, 'replace', 'iter_10.pth', 'after'),
    'before the note': (os, 'replace', 'last_checkpoint', 'before'),
    'noted': (os, 'replace', 'last_checkpoint', 'after'),
    'old ones removed': (LocalBackend, 'remove', 'iter_5.pth', 'after'),
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str) -> None:
    """Arranges that this process is killed there."""
    owner, function, name, when = MOMENTS[moment]
    call = getattr(owner, function)

    def deadly(*args):
        paths = [str(arg) for arg in args if isinstance(arg, (str, Path))]
        if not any(Path(path).name.removesuffix(files.PARTIAL) == name for path in paths):
            return call(*args)
        if name == 'last_checkpoint' and not Path(paths[-1]).with_name('iter_10.pth').exists():
            return call(*args)  # an earlier one
        if when == 'half':
            Path(args[2]).write_bytes(args[1][: len(args[1]) // 2])
        elif when == 'after':
            call(*args)
        kill()

    setattr(owner, function, deadly)


def iterations(folder: Path) -> list[int]:
    return sorted(int(path.stem.removeprefix('iter_')) for path in folder.glob('iter_*.pth'))


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """By how many checkpoints are kept: a training that nobody kills, trained once."""

    @functools.cache
    def train(keep):
        runner = make_run(
            tmp_path_factory.mktemp('unbroken'), 'iter', **{'default_hooks.checkpoint.max_keep_ckpts': keep}
        )
        runner.train()
        return runner

    return train


@pytest.mark.parametrize(
    ('moment', 'keep'),  # with two kept, nothing is removed yet
    [(moment, 1) for moment in MOMENTS]
    + [pytest.param(moment, 2, marks=pytest.mark.slow) for moment in list(MOMENTS)[:-1]],
)
def test_a_kill_while_a_checkpoint_is_written(moment, keep, tmp_path, unbroken):
    options = {'loop': 'iter', 'default_hooks.checkpoint.max_keep_ckpts': keep}

    def train() -> None:
        die_at(moment)
        make_run(tmp_path, **options).train()

    assert forked(train) == -signal.SIGKILL
    said = []
    checkpoint = find_checkpoint(tmp_path, said.append)
    before = moment in ('half written', 'written', 'before the rename', 'renamed', 'before the note')
    assert Path(checkpoint).name == ('iter_5.pth' if before else 'iter_10.pth')
    assert said == []
    assert all(read(path) for path in tmp_path.glob('*.pth'))  # each there is, is whole
    assert bool(list(tmp_path.glob('*.partial'))) == (moment not in ('renamed', 'noted', 'old ones removed'))

    runner = make_run(tmp_path, resume=checkpoint, **options)
    runner.train()
    weights, expected = runner.model.state_dict(), unbroken(keep)
    assert all(torch.equal(weights[name], value) for name, value in expected.model.state_dict().items())
    assert iterations(tmp_path) == iterations(Path(expected.work_dir)) == ([21] if keep == 1 else [20, 21])
    assert not list(tmp_path.glob('*.partial'))


def test_damaged_checkpoints_are_passed_over(tmp_path):
    make_run(tmp_path, 'iter', **{'default_hooks.checkpoint.max_keep_ckpts': -1}).train()
    said = []
    assert find_checkpoint(tmp_path, said.append) == str(tmp_path / 'iter_21.pth')
    assert said == []

    for name, size in (('iter_21.pth', 5000), ('iter_20.pth', 0)):
        with open(tmp_path / name, 'r+b') as file:
            file.truncate(size)
    shutil.copy(tmp_path / 'iter_10.pth', tmp_path / 'best_accuracy_iter_99.pth')
    best = read(tmp_path / 'iter_10.pth')
    best['meta']['iter'] = 99
    del best['optimizer']
    torch.save(best, tmp_path / 'best_accuracy_iter_99.pth')
    (tmp_path / 'iter_30.pth.partial').write_bytes(b'PK')
    assert find_checkpoint(tmp_path, said.append) == str(tmp_path / 'iter_15.pth')
    assert 'iter_21.pth cannot be read' in said[0]
    assert 'iter_15.pth, of iteration 15: going on from there' in said[1]

    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_17.pth'))
    assert find_checkpoint(tmp_path, said.append) == str(tmp_path / 'iter_15.pth')
    assert 'iter_17.pth: there is no such file' in said[2]
    (tmp_path / 'last_checkpoint').write_text('')
    assert find_checkpoint(tmp_path, said.append) == str(tmp_path / 'iter_15.pth')
    assert find_checkpoint(tmp_path / 'nowhere', said.append) is None


def test_checkpoints_of_which_none_can_be_read(tmp_path):
    make_run(tmp_path, 'iter', **{'default_hooks.checkpoint.max_keep_ckpts': 2}).train()
    files = sorted(tmp_path.glob('*.pth'))
    for path in files:
        path.write_bytes(path.read_bytes()[:3000])
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match='cannot go on from any of them') as error:
        find_checkpoint(tmp_path, print)
    assert all(f'{path} cannot be read' in str(error.value) for path in files)
    assert 'leave --resume out' in str(error.value)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for path in files:
        path.unlink()
    with pytest.raises(UserError, match='there is no such file'):  # the note names one
        find_checkpoint(tmp_path, print)
    (tmp_path / 'last_checkpoint').unlink()
    assert find_checkpoint(tmp_path, print) is None
    torch.save({'state_dict': {}}, tmp_path / 'pretrained.pth')  # weights that somebody put there
    assert find_checkpoint(tmp_path, print) is None


# --------------------------------------------------------------------------------------------------------------------
# Full disks


@contextlib.contextmanager
def small_disk(folder: Path, size: int):
    """Mounts a file system of so many bytes; a test is skipped where that is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f'no file system can be mounted here: {mounted.stderr.strip()}')
    try:
        yield folder
    finally:
        subprocess.run(['umount', '--lazy', str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Leaves so many bytes free on the disk of a folder."""
    with open(folder / 'ballast', 'wb') as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))


def room(folder: Path) -> None:
    (folder / 'ballast').unlink()


def test_a_full_disk_at_a_periodic_checkpoint(tmp_path):
    """Between iterations 8 and 18 nothing can be written: two checkpoints are left out, logs and notes, too."""
    with small_disk(tmp_path / 'disk', 2 << 20) as disk:
        options = {'loop': 'iter', 'default_hooks.checkpoint.save_best': 'accuracy'}
        hooks = [At(8, lambda: fill(disk, 4096)), At(18, lambda: room(disk))]
        runner = make_run(disk / 'run', hooks=hooks, **options)
        seen = []
        runner.register_hook(
            At(16, lambda: seen.append((iterations(disk / 'run'), find_checkpoint(disk / 'run', print))))
        )
        with LogCapture(runner) as log:
            runner.train()
        assert seen == [([5, 7], str(disk / 'run' / 'iter_7.pth'))]  # 7: again, with the name of the best one
        assert iterations(disk / 'run') == [20, 21]
        assert not list((disk / 'run').glob('*.partial'))
        lines = [line for line in log.lines if line.startswith('No room')]
        assert len(lines) == 3  # at 10, at 15, and the best one at 14
        assert "iter_10.pth' cannot be written (No space left on device): it needs 0.0" in lines[0]
        assert 'Training goes on to the next one' in lines[0]
        assert 'best_accuracy_iter_14.pth' in lines[1]
        best = runner.message_hub.get_info('best_ckpt')
        assert [str(path) for path in (disk / 'run').glob('best_*')] == [best]
        assert read(best)['state_dict']


def test_a_full_disk_at_the_last_checkpoint(tmp_path):
    with small_disk(tmp_path / 'disk', 2 << 20) as disk:
        runner = make_run(disk / 'run', 'iter', hooks=[At(20, lambda: None), At(21, lambda: fill(disk, 4096))])
        with pytest.raises(NoRoom, match=r'iter_21.pth.*cannot be written.*the checkpoint before it is kept'):
            runner.train()
        assert find_checkpoint(disk / 'run', print) == str(disk / 'run' / 'iter_20.pth')
        room(disk)
        make_run(disk / 'run', 'iter', resume=str(disk / 'run' / 'iter_20.pth')).train()
        assert iterations(disk / 'run') == [20, 21]


def test_a_full_disk_at_a_stop(tmp_path):
    with small_disk(tmp_path / 'disk', 2 << 20) as disk:

        def full_stop() -> None:
            fill(disk, 4096)
            os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(NoRoom):
            make_run(disk / 'run', 'iter', hooks=[At(8, full_stop)]).train()
        assert find_checkpoint(disk / 'run', print) == str(disk / 'run' / 'iter_5.pth')


def test_other_errors_of_a_disk_are_not_taken_for_a_full_one(tmp_path, monkeypatch):
    put = LocalBackend.put

    def broken(self, obj, filepath):
        put(self, obj[:100], filepath)
        raise OSError(5, 'Input/output error')

    runner = make_run(tmp_path, 'iter')
    monkeypatch.setattr(LocalBackend, 'put', broken)
    with pytest.raises(OSError, match='Input/output error'):
        runner.train()
    assert not list(tmp_path.glob('iter_*'))


def test_size_of_a_checkpoint():
    assert _num_bytes({'a': torch.zeros(3), 'b': [torch.zeros(2, dtype=torch.int8)], 'c': 'text', 'd': (1,)}) == 14


# --------------------------------------------------------------------------------------------------------------------
# FlexibleRunner


def test_flexible_runner(tmp_path):
    """It saves through its strategy, and the same holds."""
    options = {'loop': 'epoch', 'runner_type': 'FlexibleRunner', 'strategy': {'type': 'SingleDeviceStrategy'}}
    options['env_cfg'] = {'dist_cfg': {'backend': 'gloo'}}
    unbroken = make_run(tmp_path / 'unbroken', **options)
    unbroken.train()
    with pytest.raises(Preempted) as stopped:
        make_run(tmp_path / 'broken', hooks=[At(10, lambda: os.kill(os.getpid(), signal.SIGTERM))], **options).train()
    assert stopped.value.code == EXIT_CODE
    assert Path(stopped.value.checkpoint).name == 'epoch_1_iter_10.pth'
    runner = make_run(tmp_path / 'broken', resume=stopped.value.checkpoint, **options)
    runner.train()
    weights = runner.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in unbroken.model.state_dict().items())
