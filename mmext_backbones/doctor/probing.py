"""Runs the probes in a process of their own, and goes on after one that ends the process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LIBRARIES = (
    *('numpy', 'setuptools', 'pkg_resources', 'torch', 'torchvision', 'triton', 'timm', 'cv2'),
    *('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmext_backbones'),
)
TOOLBOXES = ('mmdet', 'mmseg', 'mmpretrain')
RUNS = ('run cuda', 'run mmcv.ops', 'run kernels', 'run triton', *(f'run {library}.models' for library in TOOLBOXES))
RUNS += tuple(f'run {library}:: bases' for library in TOOLBOXES)
TIMEOUT = 300.0  # seconds, of all that one process does

# with the search path of this process
_START = """
import os, runpy, sys
sys.path[:] = sys.argv.pop(1).split(os.pathsep)
runpy.run_path(sys.argv.pop(1), run_name='__main__')
"""


def names_of(config: str | None, quick: bool) -> list[str]:
    """The probes to run: every library, what runs unless `quick`, and the data of a config."""
    return [*LIBRARIES, *(() if quick else RUNS), *(['config'] if config else [])]


def run_probes(names: Sequence[str], config: str | None = None, timeout: float = TIMEOUT) -> dict[str, dict[str, Any]]:
    """The facts that each probe finds, see `probe`; a probe that crashes or hangs has an `error` that says so."""
    facts: dict[str, dict[str, Any]] = {}
    left = list(names)
    while left:
        lines, end = _run(left, config, timeout)
        begun = None
        for line in lines:
            if 'begin' in line:
                begun = line['begin']
            elif 'end' in line:
                facts[line.pop('end')], begun = line, None
        if begun is not None:
            facts[begun] = {'error': end}
        elif not any(name in facts for name in left):  # it did not even start
            facts.update({name: {'error': end} for name in left})
        left = [name for name in left if name not in facts]
    return facts


def _run(names: Sequence[str], config: str | None, timeout: float) -> tuple[list[dict], str]:
    """What one process says, and how it ended."""
    flags = [flag for flag, on in (('-I', sys.flags.isolated), ('-S', sys.flags.no_site)) if on]
    paths = os.pathsep.join(os.path.abspath(path or '.') for path in sys.path)
    script = str(Path(__file__).with_name('probe.py'))
    command = [sys.executable, *flags, '-c', _START, paths, script, config or '', *names]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout)
        out, end = done.stdout, 'ended'
        if done.returncode < 0:
            end = f'Python crashed ({signal.Signals(-done.returncode).name})'
        elif done.returncode:
            said = done.stderr.decode(errors='replace').strip().splitlines() or ['no message']
            end = f'Python ended with code {done.returncode}: {said[-1]}'
    except subprocess.TimeoutExpired as error:
        out, end = error.stdout or b'', f'no answer within {timeout:.0f} seconds'
    except OSError as error:
        out, end = b'', f'no process can be started: {error}'
    return [_read(line) for line in out.decode(errors='replace').splitlines() if line.startswith('{')], end


def _read(line: str) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:  # cut off when the process ended
        return {}
