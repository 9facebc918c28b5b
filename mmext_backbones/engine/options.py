"""The options of a training and of a test, each in one place: the tools' parsers and the functions read them here."""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..config.options import ConfigOptions
from ..datasets.bad_data.runner import MODES
from ..utils.cli import add_traceback_option, check_threshold
from ..utils.errors import UserError
from .config_edits import STRATEGY_NAMES, TRACKERS

RUNTIMES = ('onnxruntime', 'openvino')

__all__ = ['RunOptions', 'TestOptions', 'TrainOptions', 'add_arguments', 'options_of']

# of a training: options, and the config keys that say the same
SAME_KEYS = {
    'epochs': ('train_cfg.max_epochs', 'train_cfg.max_iters'),
    'batch_size': ('train_dataloader.batch_size',),
    'lr': ('optim_wrapper.optimizer.lr',),
}


def _option(help: str, default: Any = None, **settings: Any) -> Any:
    """A field with what argparse is told of it."""
    return field(default=default, metadata={'help': help, **settings})


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a training and a test share. A field is an option of the tools, `work_dir` for example ``--work-dir``."""

    shapes: bool = _option("run on drawn shapes instead of the config's own data", False)
    work_dir: str | None = _option('where everything is written (default: work_dirs/<config>)')
    cfg_options: Mapping[str, Any] | None = _option(
        'config entries to override, applied after everything else',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
    )
    bf16: bool = _option('the backbone in bfloat16, the rest in float32; on the CPU as well', False)
    bad_data: str | None = _option(
        'stop at data that cannot be used (default), or leave it out and say so', choices=MODES
    )
    device: str | None = _option('cpu, cuda, cuda:1, ... (default: a GPU if there is one)')
    launcher: str = _option('what started this process as one of several', 'none',
                            choices=['none', 'pytorch', 'slurm', 'mpi'])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """Of a training."""

    resume: str | None = _option(
        'go on from this, or from the last checkpoint', nargs='?', const='auto', metavar='CHECKPOINT'
    )
    epochs: int | None = _option(
        'passes over the training data, with the schedule in proportion; also of a config that counts iterations',
        type=int,
        metavar='N',
    )
    batch_size: int | None = _option('images in a training batch of a process', type=int, metavar='N')
    lr: float | None = _option('base learning rate of this run', type=float, metavar='RATE')
    amp: bool = _option('mixed precision (needs a GPU)', False)
    auto_scale_lr: bool = _option('scale the learning rate to the batch of a step', False)
    strategy: str | None = _option('how processes share a model, see docs/scaling.md', choices=STRATEGY_NAMES)
    accumulate: int = _option('step the optimizer every N batches', 1, type=int, metavar='N')
    seed: int | None = _option('of every random choice', type=int)
    on_nonfinite: str | None = _option(
        'after a loss or gradients that are not finite: stop with a message (default), or leave out the step',
        choices=['stop', 'skip'],
    )
    track: Sequence[str] | None = _option(
        'follow the training there (default: tensorboard, where it is installed), see docs/visualization.md',
        nargs='+',
        choices=TRACKERS,
    )

    def __post_init__(self) -> None:
        """Whether --epochs, --batch-size and --lr can be used, and no other option asks for something else.

        Raises:
            UserError: if not.
        """
        for name, keys in SAME_KEYS.items():
            value, option = getattr(self, name), f'--{name.replace("_", "-")}'
            if value is None:
                continue
            if name == 'lr' and not 0 < value < math.inf:
                raise UserError(f'--lr {value}: expected a number above 0.')
            if name != 'lr' and value < 1:
                raise UserError(f'{option} {value}: expected 1 or more.')
            twice = [key for key in keys if key in (self.cfg_options or {})]
            if twice:
                raise UserError(f'{option} and --cfg-options {twice[0]} ask for the same value: leave one of them out.')
        if self.lr is not None and self.auto_scale_lr:
            raise UserError('--lr is the rate of this run, and --auto-scale-lr would change it: leave one of them out.')


@dataclass(frozen=True, kw_only=True)
class TestOptions(RunOptions):
    """Of a test."""

    __test__ = False  # pytest takes it for a test of ours

    onnx: str | None = _option('test this file of tools/export.py --whole in place of a checkpoint', metavar='FILE')
    runtime: str | None = _option('what runs the file of --onnx (default: onnxruntime)', choices=RUNTIMES)
    predictions: str | None = _option(
        'evaluate these instead: what --out wrote, or COCO results (.pkl, .json)', metavar='FILE'
    )
    out: str | None = _option(
        'save all predictions: NAME.pkl, NAME.json (COCO detectors) or a folder of PNGs (segmentors)'
    )
    tta: bool = _option('predict several views of each picture and merge them', False)
    show_dir: str | None = _option('write one picture of ground truth and prediction per image there')
    threshold: float | None = _option('draw detections from this score on (default: 0.5)', type=float, metavar='SCORE')

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_threshold(self.threshold)


def add_arguments(parser: argparse.ArgumentParser, kind: type[RunOptions]) -> None:
    """The config and the options of a tool."""
    parser.add_argument('config', help='a config file, or a name like mmdet::path/inside/its/configs.py')
    for option in fields(kind):
        settings = dict(option.metadata)
        if option.type is bool:
            settings['action'] = 'store_true'
        parser.add_argument(f'--{option.name.replace("_", "-")}', default=option.default, **settings)
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')
    add_traceback_option(parser)


def options_of(kind: type[RunOptions], args: argparse.Namespace) -> dict[str, Any]:
    """The options among parsed arguments, by name."""
    return {option.name: getattr(args, option.name) for option in fields(kind)}
