"""One config run by mmengine's runner and by ours, each in a process of its own, and what differs."""

import contextlib
import gc
import hashlib
import importlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.config import config as mmengine_config
from mmengine.registry import RUNNERS
from mmengine.runner import find_latest_checkpoint

from mmext_backbones.engine.test import test
from mmext_backbones.engine.train import train
from mmext_backbones.utils.explain import explain

from .toys import EVENTS, plain

__all__ = ['compare', 'prepare', 'run']

KEPT = ('.csv', '.json', '.odgt', '.png', '.txt')  # files of which the content is compared


def stock(config: Path) -> None:
    """What the libraries' own tools do: a training, then a test of its last checkpoint."""
    cfg = Config.fromfile(config)
    cfg.work_dir = 'work'
    runner_class = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    runner_class.from_cfg(cfg).train()
    cfg = Config.fromfile(config)
    cfg.work_dir = 'work'
    cfg.load_from = find_latest_checkpoint('work')
    runner_class.from_cfg(cfg).test()


def ours(config: Path) -> None:
    """What tools/train.py and tools/test.py do."""
    train(str(config), work_dir='work')
    test(str(config), find_latest_checkpoint('work'), work_dir='work')


SIDES: dict[str, Callable[[Path], None]] = {'stock': stock, 'ours': ours}


def prepare() -> None:
    """Before the first run: what each would spend its time on by itself is done once, in this process."""
    for name in ('matplotlib.pyplot', 'torch.utils.tensorboard'):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    mmengine_config.FormatCode = lambda code, **_: (code, True)  # configs need not be pretty: half a second each
    gc.collect()
    gc.freeze()  # data sets collect garbage, which would go through, and so copy, all that forks share


def run(side: str, config: Path, folder: Path, limit: float) -> dict[str, Any]:
    """Runs one side of a config in a fork of this process.

    Args:
        side: ``'stock'`` or ``'ours'``.
        config: Its file.
        folder: Where it runs; made.
        limit: Seconds, after which it is killed with all its processes.

    Returns:
        ``exit`` (0; 1 for an error with a traceback; 2 for one in a message; None if killed), ``error``, ``events``,
        ``files``, ``seconds``.
    """
    folder.mkdir(parents=True)
    process = os.fork()
    if process == 0:
        try:
            _child(side, config, folder)
        finally:
            os._exit(1)
    started = time.monotonic()
    while os.waitpid(process, os.WNOHANG)[0] == 0:
        if time.monotonic() - started > limit:
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # what it started goes with it
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, 0)
    result = folder / 'result.json'
    if not result.exists():
        end = f'not done after {limit:g} s' if time.monotonic() - started > limit else 'the process died'
        return {'exit': None, 'error': end, 'events': [], 'files': {}, 'seconds': time.monotonic() - started}
    return json.loads(result.read_text())


def _child(side: str, config: Path, folder: Path) -> None:
    os.setsid()
    with open(folder / 'log.txt', 'w') as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    os.chdir(folder)
    torch.set_num_threads(1)
    EVENTS.clear()
    result: dict[str, Any] = {'exit': 0, 'error': None}
    started = time.monotonic()
    try:
        SIDES[side](config)
    except BaseException as error:
        traceback.print_exc()
        result = {'exit': 2 if side == 'ours' and _told(error) else 1, 'error': f'{type(error).__name__}: {error}'}
    result |= {'seconds': time.monotonic() - started, 'events': plain(EVENTS), 'files': _files(folder)}
    temporary = folder / 'result.part'
    temporary.write_text(json.dumps(result))
    temporary.rename(folder / 'result.json')
    os._exit(0)


def _told(error: BaseException) -> bool:
    return isinstance(error, Exception) and explain(error) is not None


def _files(folder: Path) -> dict[str, str]:
    """What a run left: the checkpoints by name, and what was written outside its work dir by content."""
    found = {}
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        name = str(path.relative_to(folder))
        if name.startswith('work/'):
            if path.suffix == '.pth' and path.parent == folder / 'work':
                found[name] = ''
        elif name not in ('log.txt', 'result.part'):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.suffix in KEPT else ''
    return found


def compare(theirs: dict[str, Any], own: dict[str, Any]) -> tuple[str, str]:
    """How two sides of a config agree.

    Args:
        theirs: Of `run`, by mmengine's runner.
        own: By ours.

    Returns:
        ``'equal'``, ``'both fail'`` or ``'differs'``; and what is to be said of it.
    """
    if theirs['exit'] != 0 and own['exit'] != 0:
        hung = theirs['exit'] is None or own['exit'] is None
        if hung and theirs['error'] != own['error']:
            return 'differs', f'mmengine: {_line(theirs["error"])}; ours: {_line(own["error"])}'
        return 'both fail', _line(theirs['error'])
    if theirs['exit'] != own['exit']:
        failed, side = (theirs, 'mmengine') if theirs['exit'] != 0 else (own, 'ours')
        return 'differs', f'only {side} fails: {_line(failed["error"])}'
    for one, other in zip(theirs['events'], own['events'], strict=False):
        if one != other:
            return 'differs', f'mmengine: {_line(str(one), 300)}; ours: {_line(str(other), 300)}'
    if len(theirs['events']) != len(own['events']):
        return 'differs', f'{len(theirs["events"])} losses and metrics, ours has {len(own["events"])}'
    lost = {name for name, digest in theirs['files'].items() if own['files'].get(name) != digest}
    if lost:
        return 'differs', f'files that ours has not, or otherwise: {", ".join(sorted(lost))[:300]}'
    return 'equal', ''


def _line(text: str | None, size: int = 400) -> str:
    return ' '.join(str(text).split())[:size]
