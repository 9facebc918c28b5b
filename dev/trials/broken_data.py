"""Breaks small data sets in random ways, and checks that every run ends as it should: see docs/reliability.md.

python dev/trials/broken_data.py --number 300 --json result.json

Each data set is looked at as tools/check_dataset.py does, and read through the loaders of a training and a validation,
with and without worker processes, in both modes of ``--bad-data``; every tenth is trained for two iterations.
"""

import argparse
import contextlib
import functools
import gc
import hashlib
import io
import json
import logging
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault('OPENCV_LOG_LEVEL', 'OFF')

import numpy as np
from breaking import FAULTS
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mmext_backbones.datasets.bad_data.kinds import KINDS, read_faults
from mmext_backbones.datasets.bad_data.report import check_splits
from mmext_backbones.datasets.bad_data.runner import MODES, GuardedData, needs_masks
from mmext_backbones.datasets.shapes.config import use_shapes
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine.runner import build_runner
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.console import silence_libraries
from mmext_backbones.utils.explain import explain
from mmext_backbones.utils.printable import one_line

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SIZE = (48, 64)  # not square: a turned picture must be noticed
BACKBONE = {'arch': {'_delete_': True, 'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}}
WIDTHS = [24, 48, 96, 192]
THIN = {
    'detection': {
        'neck': {'in_channels': WIDTHS, 'out_channels': 32},
        'rpn_head': {'in_channels': 32, 'feat_channels': 32},
        'roi_head': {
            'bbox_roi_extractor': {'out_channels': 32},
            'mask_roi_extractor': {'out_channels': 32},
            'bbox_head': {'in_channels': 32, 'fc_out_channels': 32},
            'mask_head': {'in_channels': 32, 'conv_out_channels': 32},
        },
    },
    'segmentation': {
        'decode_head': {'in_channels': WIDTHS, 'channels': 32},
        'auxiliary_head': {'in_channels': 96, 'channels': 32},
    },
    'classification': {'head': {'in_channels': 192}},
}
NAMES = {
    'detection': 'swin_t_maskrcnn_1x.py',
    'segmentation': 'swin_t_upernet_160k.py',
    'classification': 'swin_t_in1k.py',
}


class _Loaders:
    """Of a Runner, its loaders and its evaluator."""

    build_dataloader = staticmethod(Runner.build_dataloader)

    def __init__(self, cfg: Config, log_dir: Path) -> None:
        self.cfg = cfg
        self.log_dir = log_dir

    def build_train_loop(self, loader: dict) -> Any:
        return SimpleNamespace(dataloader=self.build_dataloader(loader, seed=0))

    def build_val_loop(self, loader: dict) -> Any:
        return SimpleNamespace(dataloader=self.build_dataloader(loader), evaluator=Evaluator(self.cfg.val_evaluator))


class Loaders(GuardedData, _Loaders):
    """Those of a guarded run."""


@functools.cache
def thin_config(task: str) -> Config:
    cfg = Config.fromfile(CONFIGS / NAMES[task])
    cfg.merge_from_dict(deepcopy({'model': {'backbone': BACKBONE, **THIN[task]}}))
    return cfg


def config_of(task: str, root: Path, workers: int) -> Config:
    """A thin model on the data of `root`."""
    cfg = deepcopy(thin_config(task))
    use_shapes(cfg, root, size=64, iters=2, batch_size=2, num_workers=workers)
    if task == 'classification':
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader'].collate_fn = {'type': 'default_collate'}
    cfg.train_dataloader.sampler = {'type': 'DefaultSampler', 'shuffle': False}  # every picture once
    return cfg


def digest(root: Path) -> str:
    """Of every file, link, folder and pipe under `root`."""
    state = hashlib.sha256()
    for path in sorted(root.rglob('*')):
        mode = path.lstat().st_mode
        state.update(f'{path.relative_to(root)} {mode} '.encode())
        if stat.S_ISREG(mode):
            state.update(path.read_bytes())
    return state.hexdigest()


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError after some seconds; those in which this process was stopped do not count."""
    ticks = 0

    def tick(*_: object) -> None:
        nonlocal ticks
        ticks += 1  # while a process is stopped, only one signal waits
        if ticks >= seconds:
            raise TimeoutError(f'no end after {seconds} s')

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(run: Any) -> tuple[str, str]:
    """('finished', ''), ('message', its text), or ('traceback' or 'hang', the error)."""
    try:
        run()
    except TimeoutError as error:
        return 'hang', str(error)
    except Exception as error:
        message = explain(error)
        if message is None or 'Traceback' in message:
            return 'traceback', f'{type(error).__name__}: {error}'
        return 'message', message
    return 'finished', ''


def read_all(cfg: Config, log_dir: Path) -> None:
    """Every batch of a training and a validation."""
    loaders = Loaders(cfg, log_dir)
    for build, loader in (
        (loaders.build_train_loop, cfg.train_dataloader),
        (loaders.build_val_loop, cfg.val_dataloader),
    ):
        for _ in build(loader).dataloader:
            pass


def train(cfg: Config, log_dir: Path) -> None:
    """Two iterations and a validation."""
    cfg.work_dir = str(log_dir)
    cfg.log_level = 'ERROR'
    cfg.default_hooks.checkpoint = None
    cfg.visualizer = None  # one of its own: the libraries' is one for the whole process
    cfg.experiment_name = f'{log_dir.parent.name}_{log_dir.name}'
    build_runner(cfg).train()


def break_and_run(case: int, seed: int, clean: Path, folder: Path, limit: int) -> dict[str, Any]:
    """One data set: what was broken, how each run ended, and what was wrong with that."""
    rng = np.random.default_rng([seed, case])
    task = ('detection', 'segmentation', 'classification')[rng.choice(3, p=(0.5, 0.28, 0.22))]
    names = [name for name, fault in FAULTS.items() if task in fault.tasks]
    first = names[case % len(names)]  # each of them is met
    others = rng.choice(names, rng.integers(0, 3), replace=False).tolist()
    chosen = [(name, ('train', 'val')[rng.integers(2)]) for name in dict.fromkeys([first, *others])]
    root = folder / 'data'
    shutil.copytree(clean, root)
    applied = []
    for name, split in chosen:
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):  # nothing left that it could break
            FAULTS[name].apply(rng, root, split, task)
            applied.append((name, split))
    before = digest(root)
    workers = int(rng.choice([0, 0, 2]))
    real = case % 10 == 0
    result = {'case': case, 'task': task, 'faults': applied, 'workers': workers, 'real': real, 'wrong': []}
    wrong = result['wrong']

    report: dict[str, Any] = {}
    cfg = config_of(task, root, workers)

    def check() -> None:
        report.update(check_splits(cfg, ('train', 'val'), masks=needs_masks(cfg)))

    with time_limit(limit):
        outcome, text = attempt(check)
    result['check'] = outcome
    if outcome != 'finished':
        wrong.append(f'check: {outcome}: {text}')
    errors = {split: _errors(part) for split, part in report.items()}
    kinds = {kind for found in errors.values() for kind, _, _ in found}
    for name, split in applied:
        expected = FAULTS[name].kinds
        if expected and len(applied) == 1 and not kinds & set(expected):
            wrong.append(f'check: {name} in {split} was found as {sorted(kinds)}')
        told = {kind for part in report.values() for kind in part.get('faults', {})}
        if FAULTS[name].told and len(applied) == 1 and not told & set(FAULTS[name].told):
            wrong.append(f'check: {name} in {split} was told as {sorted(told)}')
    if kinds and not any(FAULTS[name].kinds for name, _ in applied):
        wrong.append(f'check: a harmless fault was found as {sorted(kinds)}')
    paths = {path for found in errors.values() for _, path, _ in found}
    fatal = any(not KINDS[kind].drops for kind in kinds)

    for mode in MODES:
        cfg = config_of(task, root, workers)
        cfg.bad_data = mode
        log_dir = folder / mode
        with time_limit(limit):
            outcome, text = attempt(lambda cfg=cfg, log_dir=log_dir: (train if real else read_all)(cfg, log_dir))
        result[mode] = outcome
        stops = fatal or (mode == 'stop' and bool(kinds))
        if outcome in ('traceback', 'hang'):
            wrong.append(f'{mode}: {outcome}: {text}')
        elif (outcome == 'message') != stops and not (real and mode == 'stop' and outcome == 'finished'):
            wrong.append(f'{mode}: {outcome}, with errors {sorted(kinds)}: {text}')
        elif outcome == 'message' and not any(
            path in text or one_line(path) in text for path in (paths if not fatal else (str(root), 'classes'))
        ):
            wrong.append(f'{mode}: the message names no file: {text}')
        if mode == 'skip' and outcome == 'finished' and not real:
            told = {
                split: {tuple(fault) for fault in found} for split, found in read_faults(log_dir / 'bad_data').items()
            }
            if told != {split: found for split, found in errors.items() if found}:
                wrong.append(f'skip: reported {told}, found {errors}')
    if digest(root) != before:
        wrong.append('the data was changed')
    return result


def _errors(part: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {
        (kind, item['path'], item['detail'])
        for kind, found in part.get('faults', {}).items()
        if found['level'] == 'error'
        for item in found['found']
    }


def run(number: int, seed: int, limit: int, cases: Sequence[int] | None = None) -> dict[str, Any]:
    """Breaks `number` data sets.

    Returns:
        Counts, and of each case that did not end as it should what was wrong.
    """
    silence_libraries()
    logging.disable(logging.WARNING)
    started = time.process_time()
    gc.freeze()  # mmengine collects garbage for each data set, among all that torch holds
    results = []
    with tempfile.TemporaryDirectory(prefix='broken_data_') as folder:
        clean = make_shapes(Path(folder) / 'clean', size=SIZE, num_train=6, num_val=5, seed=seed)
        for case in cases if cases is not None else range(number):
            case_folder = Path(folder) / f'case{case}'
            with contextlib.redirect_stdout(io.StringIO()):
                results.append(break_and_run(case, seed, clean, case_folder, limit))
            shutil.rmtree(case_folder)
            MMLogger._instance_dict.clear()
            print(
                f'\r{len(results)} of {number}, {sum(bool(r["wrong"]) for r in results)} wrong', end='', file=sys.stderr
            )
    print(file=sys.stderr)
    logging.disable(logging.NOTSET)
    return {
        'number': len(results),
        'seed': seed,
        'faults': sum(len(result['faults']) for result in results),
        'kinds of faults': len({name for result in results for name, _ in result['faults']}),
        'tasks': Counter(result['task'] for result in results),
        'with workers': sum(result['workers'] > 0 for result in results),
        'trained': sum(result['real'] for result in results),
        **{key: Counter(result[key] for result in results) for key in ('check', *MODES)},
        'seconds of CPU': round(time.process_time() - started),
        'wrong': [result for result in results if result['wrong']],
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--number', type=int, default=300, help='of data sets')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--limit', type=int, default=300, help='seconds that a run may take')
    parser.add_argument('--case', type=int, nargs='+', help='only these')
    parser.add_argument('--json', type=Path, help='where to write the result')
    args = parser.parse_args(argv)
    result = run(args.number, args.seed, args.limit, args.case)
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    for item in result.pop('wrong'):
        print(json.dumps(item))
        result.setdefault('wrong', 0)
        result['wrong'] += 1
    print(json.dumps(result))
    return 1 if 'wrong' in result else 0


if __name__ == '__main__':
    sys.exit(run_cli(main))
