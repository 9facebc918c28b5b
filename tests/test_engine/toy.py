"""A training small enough to be interrupted many times: milliseconds an iteration, random in all it can be."""

import copy
import itertools
import logging
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, LOOPS, METRICS, MODELS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mmext_backbones.config.editing import ConfigEditor
from mmext_backbones.engine.config_edits import INTERRUPTION_HOOKS, fit_seed
from mmext_backbones.engine.runner import build_runner

COUNT = itertools.count()


@DATASETS.register_module(name='ToyNoise')
class Noise(Dataset):
    """Points and the side of a plane they are on; the points are moved at random, as images are augmented."""

    def __init__(self, length: int = 26, ballast: int = 0) -> None:
        self.ballast = bytes(ballast)
        self.metainfo = {'classes': ('one', 'two')}
        self.points = np.random.default_rng(0).standard_normal((length, 8)).astype(np.float32)
        self.loaded = []

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> dict:
        self.loaded.append(index)
        moved = self.points[index] + 0.1 * np.random.standard_normal(8).astype(np.float32)
        sample = {'x': torch.from_numpy(moved), 'y': torch.tensor(int(self.points[index, 0] > 0))}
        return {**sample, 'ballast': self.ballast} if self.ballast else sample


@MODELS.register_module(name='ToyModel')
class Toy(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))

    def forward(self, x: torch.Tensor, y: torch.Tensor, mode: str = 'tensor', ballast: list = ()) -> object:
        out = self.layers(x)
        return {'loss': nn.functional.cross_entropy(out, y)} if mode == 'loss' else [(out, y)]


@METRICS.register_module(name='ToyAccuracy')
class Accuracy(BaseMetric):
    def process(self, data_batch: dict, data_samples: list) -> None:
        self.results += [float((out.argmax(1) == y).float().mean()) for out, y in data_samples]

    def compute_metrics(self, results: list) -> dict:
        np.random.rand(), torch.rand(1)  # a validation that draws
        return {'accuracy': sum(results) / len(results)}


class SkippingBatches:
    """Of `SkippingLoop`: begins to load at the first batch that is asked for."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader
        self.batches = None

    def __iter__(self) -> 'SkippingBatches':
        return self

    def __next__(self) -> object:
        if self.batches is None:
            self.batches = iter(self.loader)
        try:
            return next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            return next(self.batches)

    def skip_iter(self, num_iters: int) -> None:
        skip = num_iters * self.loader.batch_size
        self.loader.sampler.indices = itertools.islice(self.loader.sampler._indices_of_rank(), skip, None)
        self.batches = None


@LOOPS.register_module(name='ToySkippingLoop')
class SkippingLoop(IterBasedTrainLoop):
    """Resumes as onedl-mmengine 0.10.12 does: it tells its iterator how many batches to skip, or skips none."""

    def __init__(self, *args: object, fast_forward_on_resume: bool = False, **options: object) -> None:
        with mock.patch('mmengine.runner.loops._InfiniteDataloaderIterator', SkippingBatches):
            super().__init__(*args, **options)
        self.fast_forward_on_resume = fast_forward_on_resume

    def run(self) -> nn.Module:
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter > 0 and not self.fast_forward_on_resume:
            self.dataloader_iterator.skip_iter(self._iter)
        while self._iter < self._max_iters:
            self.runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            self._decide_current_val_interval()
            if self._iter >= self.val_begin and self._iter % self.val_interval == 0:
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model


class At(Hook):
    """Calls a function after an iteration of the training, or of the validation that follows it."""

    priority = 'VERY_HIGH'

    def __init__(self, iteration: int, call: object, stage: str = 'after_train_iter') -> None:
        self.iteration = iteration
        setattr(self, stage, lambda runner, *args, **kwargs: self._call(runner, stage, call))

    def _call(self, runner: Runner, stage: str, call: object) -> None:
        if runner.iter + ('train' in stage) == self.iteration:
            call()


class LogCapture:
    """What a runner logs inside, at any level."""

    def __init__(self, runner: Runner) -> None:
        self.logger = runner.logger
        self.handler = logging.Handler(logging.DEBUG)
        self.lines = []
        self.handler.emit = lambda record: self.lines.append(record.getMessage())

    @property
    def text(self) -> str:
        return '\n'.join(self.lines)

    def __enter__(self) -> 'LogCapture':
        self.logger.addHandler(self.handler)
        return self

    def __exit__(self, *exc: object) -> None:
        self.logger.handlers.remove(self.handler)


def fork(call: Callable[[], object]) -> int:
    """Starts a process that runs a function and ends; its id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call()
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def wait(pids: list[int]) -> list[int]:
    """Exit codes of processes; that of one ended by a signal is the signal, negative."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def forked(call: Callable[[], object]) -> int:
    return wait([fork(call)])[0]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def make_hooks() -> list[dict]:
    return [{'type': name} for name in INTERRUPTION_HOOKS]


def make_run(
    work_dir: Path, loop: str = 'epoch', resume: str | None = None, hooks: tuple = (), workers: int = 0, **options
) -> Runner:
    """A runner for 3 epochs or 21 iterations of 7 batches of 4 images an epoch; `options` are dotted config keys."""
    by_epoch = loop == 'epoch'
    length = {'max_epochs': 3} if by_epoch else {'max_iters': 21, 'val_interval': 7}
    sampler = {'epoch': 'DefaultSampler', 'iter': 'InfiniteSampler', 'finite': 'DefaultSampler'}[loop]
    loader = {'batch_size': 4, 'num_workers': workers, 'collate_fn': {'type': 'default_collate'}}
    cfg = Config(
        {
            'model': {'type': 'ToyModel'},
            'work_dir': str(work_dir),
            'train_cfg': {'by_epoch': by_epoch, **length},
            'val_cfg': {},
            'train_dataloader': {
                **loader, 'dataset': {'type': 'ToyNoise'}, 'sampler': {'type': sampler, 'shuffle': True},
            },
            'val_dataloader': {
                **loader, 'num_workers': 0, 'dataset': {'type': 'ToyNoise'},
                'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            },
            'val_evaluator': {'type': 'ToyAccuracy'},
            'optim_wrapper': {'optimizer': {'type': 'AdamW', 'lr': 0.01}},
            'param_scheduler': [
                {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 10},
                {'type': 'MultiStepLR', 'by_epoch': by_epoch, 'milestones': [2] if by_epoch else [14], 'gamma': 0.5},
            ],
            'default_hooks': {
                'checkpoint': {
                    'type': 'mmext_backbones.WholeCheckpointHook', 'by_epoch': by_epoch,
                    'interval': 1 if by_epoch else 5, 'max_keep_ckpts': 2,
                },
                'logger': {'type': 'LoggerHook', 'interval': 1},
            },
            'custom_hooks': make_hooks(),
            'randomness': {'seed': 3},
            'load_from': resume,
            'resume': resume is not None,
            'experiment_name': f'toy_{next(COUNT)}',
            'log_level': 'WARNING',
        }
    )  # fmt: skip
    cfg.merge_from_dict(copy.deepcopy(options))
    fit_seed(ConfigEditor(cfg))
    runner = build_runner(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner
