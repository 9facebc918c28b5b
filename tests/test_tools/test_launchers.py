"""dist_*.sh and slurm_*.sh, with a torchrun and an srun that print what they are told."""

import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
SHOW = '#!/usr/bin/env bash\nprintf "%s\\n" "MASTER_PORT=${MASTER_PORT:-}" "$@"\n'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a config, and one of programs: bash's own needs, and the two that print."""
    path = tmp_path_factory.mktemp('launch')
    (path / 'my config.py').touch()
    (path / 'bin').mkdir()
    (path / 'bare').mkdir()
    for name in ('bash', 'env', 'dirname', 'cat'):
        for programs in ('bin', 'bare'):
            (path / programs / name).symlink_to(shutil.which(name))
    for name in ('torchrun', 'srun'):
        (path / 'bin' / name).write_text(SHOW)
        (path / 'bin' / name).chmod(0o755)
    return path


def launch(folder, script, *args, programs='bin', **variables):
    env = {'PATH': str(folder / programs), **variables}
    return subprocess.run(
        [TOOLS / script, *args], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def told(result):
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[1:]


def test_one_machine_and_a_free_port(folder):
    lines = told(launch(folder, 'dist_train.sh', 'my config.py', '8', '--cfg-options', 'a=b c'))
    assert lines[:5] == ['--nnodes', '1', '--nproc_per_node', '8', '--standalone']
    assert lines[5:] == [str(TOOLS / 'train.py'), '--launcher', 'pytorch', 'my config.py', '--cfg-options', 'a=b c']
    lines = told(launch(folder, 'dist_test.sh', 'my config.py', 'x.pth', '2', '--tta', PORT='1234'))
    assert lines[4:10] == ['--node_rank', '0', '--master_addr', '127.0.0.1', '--master_port', '1234']
    assert lines[10:] == [str(TOOLS / 'test.py'), '--launcher', 'pytorch', 'my config.py', 'x.pth', '--tta']


def test_several_machines(folder):
    run = ('dist_train.sh', 'my config.py', '8')
    nodes = {'NNODES': '4', 'NODE_RANK': '3', 'MASTER_ADDR': 'first'}
    lines = told(launch(folder, *run, **nodes))
    assert lines[:4] == ['--nnodes', '4', '--nproc_per_node', '8']
    assert lines[4:10] == ['--node_rank', '3', '--master_addr', 'first', '--master_port', '29500']
    for change, message in (
        ({'MASTER_ADDR': ''}, 'set MASTER_ADDR'),
        ({'NODE_RANK': ''}, 'set NODE_RANK, 0 to 3'),
        ({'NODE_RANK': '4'}, "NODE_RANK is '4': expected 0 to 3"),
        ({'NNODES': 'two'}, "NNODES is 'two'"),
        ({'PORT': 'http'}, "PORT is 'http'"),
    ):
        result = launch(folder, *run, **{**nodes, **change})
        assert (result.returncode, result.stdout) == (2, '')
        assert message in result.stderr


def test_slurm(folder):
    result = launch(
        folder, 'slurm_train.sh', 'gpu', 'job', 'my config.py', '--seed', '1', GPUS='16', SRUN_ARGS='-t 5 -v'
    )
    lines = told(result)
    assert 20000 <= int(result.stdout.splitlines()[0].partition('=')[2]) < 40000
    assert lines[:8] == ['--partition', 'gpu', '--job-name', 'job', '--gres', 'gpu:8', '--ntasks', '16']
    assert lines[8:13] == ['--ntasks-per-node', '8', '--cpus-per-task', '5', '--kill-on-bad-exit=1']
    assert lines[13:18] == ['-t', '5', '-v', 'python', '-u']
    assert lines[18:] == [str(TOOLS / 'train.py'), '--launcher', 'slurm', 'my config.py', '--seed', '1']
    result = launch(folder, 'slurm_test.sh', 'gpu', 'job', 'my config.py', 'x.pth', GPUS='2', PORT='77', PYTHON='py')
    assert result.stdout.startswith('MASTER_PORT=77\n')
    lines = told(result)
    assert lines[5:10] == ['gpu:2', '--ntasks', '2', '--ntasks-per-node', '2']
    assert lines[-7:] == ['py', '-u', str(TOOLS / 'test.py'), '--launcher', 'slurm', 'my config.py', 'x.pth']
    result = launch(folder, 'slurm_train.sh', 'gpu', 'job', 'my config.py', GPUS='12')
    assert result.returncode == 2
    assert 'GPUS is 12: expected a multiple of GPUS_PER_NODE, which is 8' in result.stderr


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_wrong_use_is_told(folder, script):
    result = launch(folder, script)
    assert result.returncode == 2
    assert f'Usage: tools/{script} ' in result.stderr
    dist = script.startswith('dist')
    test = ['x.pth'] if 'test' in script else []
    before, after = ([], [*test, '2']) if dist else (['gpu', 'job'], test)
    result = launch(folder, script, *before, 'my config.py', *after, programs='bare')
    assert result.returncode == 2
    assert f'{"torchrun" if dist else "srun"} is not on PATH' in result.stderr
    result = launch(folder, script, *before, 'absent.py', *after)
    assert (result.returncode, result.stdout) == (2, '')
    assert "config 'absent.py': there is no such file" in result.stderr
    if dist:
        result = launch(folder, script, *before, 'my config.py', *test, 'all')
        assert result.returncode == 2
        assert "NUM_PROCESSES is 'all': expected a number of at least 1" in result.stderr


@pytest.mark.parametrize('script', sorted(path.name for path in TOOLS.glob('*.sh')))
def test_shellcheck(script):
    if shutil.which('shellcheck') is None:
        pytest.skip('shellcheck is not installed')
    done = subprocess.run(['shellcheck', '-x', script], cwd=TOOLS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
