"""Fresh interpreters without the seconds that each takes to import PyTorch: forks of one that has, and has no more.

Nothing of the package is imported before the code of a test runs, and each ends as a whole interpreter does.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVER = """
import importlib, json, os, signal, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    task = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
for number, path in enumerate((os.devnull, task['out'], task['err'])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
signal.alarm(task['timeout'])
os.environ.clear()
os.environ.update(task['env'])
os.chdir(task['cwd'])
sys.path[:0] = task['paths']
sys.argv = ['-c']
exec(task['code'], {'__name__': '__main__'})
"""


class Fresh:
    """Runs code in a fork of an interpreter that has imported these modules."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self.folder = folder
        environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
        self.server = subprocess.Popen(
            [sys.executable, '-c', SERVER, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=folder,
        )  # fmt: skip

    def run(self, code: str, *paths: object, cwd: object = ROOT, timeout: int = 300) -> subprocess.CompletedProcess:
        """What came of the code, with the environment of this process and with these folders before all others."""
        files = {name: str(self.folder / name) for name in ('out', 'err')}
        task = {'code': code, 'paths': [str(path) for path in paths], 'cwd': str(cwd), 'timeout': timeout, **files}
        print(json.dumps({**task, 'env': dict(os.environ)}), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        return subprocess.CompletedProcess([], code, *(Path(file).read_text() for file in files.values()))

    def close(self) -> None:
        self.server.kill()  # nothing runs in it, and no end of what it imported is waited for
        self.server.communicate()


@pytest.fixture(scope='session')
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Fresh]]:
    """`fresh().run(code)`; `fresh('mmdet')` has imported that library, too."""
    started = []

    @functools.cache
    def start(*modules: str) -> Fresh:
        started.append(Fresh(tmp_path_factory.mktemp('fresh'), 'torch', 'mmengine.runner', *modules))
        return started[-1]

    yield start
    for each in started:
        each.close()
