"""Two trainings in one work dir: the second is told of the first, and takes nothing from it."""

import os
import signal
import socket
import time

import pytest

from mmext_backbones.engine.resume import work_dir_lock
from mmext_backbones.engine.resume.work_dir_lock import LOCK, is_left_over, lock_work_dir
from mmext_backbones.utils.errors import UserError

from .toy import At, fork, forked, make_run, wait


@pytest.fixture
def running(tmp_path):
    """Another training in the folder: its process."""

    def hold() -> None:
        with lock_work_dir(tmp_path):
            (tmp_path / 'iter_3.pth.partial').touch()
            time.sleep(60)

    pid = fork(hold)
    while not (tmp_path / 'iter_3.pth.partial').exists():
        time.sleep(0.01)
    yield pid
    if (tmp_path / 'iter_3.pth.partial').exists():
        os.kill(pid, signal.SIGKILL)
        wait([pid])


def test_the_second_is_refused(running, tmp_path):
    with pytest.raises(UserError, match=f'process {running} on {socket.gethostname()} since 20') as error:
        make_run(tmp_path).train()
    assert 'another training runs there' in str(error.value)
    assert (tmp_path / 'iter_3.pth.partial').exists()
    assert not list(tmp_path.glob('*.pth'))


def test_a_killed_one_leaves_the_folder_to_the_next(running, tmp_path):
    os.kill(running, signal.SIGKILL)
    wait([running])
    assert forked(lambda: make_run(tmp_path, **{'train_cfg.max_epochs': 1}).train()) == 0
    assert not list(tmp_path.glob('*.partial'))
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_files_of_one_that_knows_no_lock_are_left(tmp_path):
    partial, old = tmp_path / 'iter_3.pth.partial', tmp_path / 'iter_2.pth.partial'
    for path in (partial, old):
        path.touch()
    os.utime(old, (0, 0))
    make_run(tmp_path, **{'train_cfg.max_epochs': 1}).train()
    assert partial.exists()
    assert not old.exists()
    assert not is_left_over(tmp_path / 'iter_9.pth.partial')


def test_it_lasts_as_long_as_the_training(tmp_path):
    ends = []

    def another() -> None:
        def take() -> None:
            with lock_work_dir(tmp_path):
                pass

        ends.append(forked(take))

    make_run(tmp_path, hooks=[At(3, another)], **{'train_cfg.max_epochs': 1}).train()
    another()
    assert ends == [1, 0]


def test_a_refused_training_leaves_the_note(tmp_path):
    """It is known by it while it looks at its config; only one that begins, in a second block, keeps its own."""
    (tmp_path / LOCK).write_text('process 1 on another\n')
    with lock_work_dir(tmp_path):
        assert (tmp_path / LOCK).read_text().startswith(f'process {os.getpid()} on ')
    assert (tmp_path / LOCK).read_text() == 'process 1 on another\n'
    with lock_work_dir(tmp_path), lock_work_dir(tmp_path):
        pass
    assert (tmp_path / LOCK).read_text().startswith(f'process {os.getpid()} on ')


def test_a_forked_process_does_not_hold_it(tmp_path):
    def start() -> None:
        with lock_work_dir(tmp_path):
            os._exit(0 if fork(lambda: time.sleep(3)) else 1)

    assert forked(start) == 0
    with lock_work_dir(tmp_path):
        pass


def test_other_processes_of_the_same_training(running, tmp_path, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with lock_work_dir(tmp_path):
        pass


def test_no_locks(tmp_path, monkeypatch, capsys):
    def flock(file, how) -> None:
        raise OSError(38, 'Function not implemented')

    monkeypatch.setattr(work_dir_lock.fcntl, 'flock', flock)
    with lock_work_dir(tmp_path):
        pass
    assert 'two trainings there at once would not be noticed' in capsys.readouterr().out


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='cannot be written'), lock_work_dir(tmp_path / 'file' / 'work'):
        pass
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match='cannot be written'), lock_work_dir(tmp_path):
        pass
