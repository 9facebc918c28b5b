"""One training or one test, from the name of a config to the summary on the screen.

Both tools are thin shells around `train` and `test`. Everything a person can get wrong is checked before a model is
built: the config, the options, the data, the checkpoint.
"""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..config.data_paths import check_data
from ..config.editing import Change, ConfigEditor, walk
from ..config.files import load_config
from ..config.options import add_config_options, apply_options
from ..config.values import check_config, check_needed
from ..datasets.bad_data.runner import MODES, GuardedData, telling_bad_data
from ..datasets.shapes.config import use_shapes
from ..datasets.shapes.files import default_shapes_dir, make_shapes
from ..mmcv_ops.showing import announce
from ..registry import MODELS
from ..utils.cli import add_traceback_option
from ..utils.console import Chatter, quiet, say, shorten_console
from ..utils.errors import UserError
from ..utils.files import locked
from ..weights.checkpoints import read_meta
from ..weights.fitting import unwrap
from .checks import check_checkpoint, check_checkpoints, check_match
from .evaluation.per_class import record_classes
from .evaluation.predictions import evaluate_predictions, find_predictions, save_predictions
from .evaluation.results import describe, results_name, write_results
from .evaluation.tta import use_tta
from .memory import naming_memory_settings
from .processes import check_launcher, fit_processes, join_processes, world_size
from .resume.position import find_checkpoint
from .resume.runner import SteadyRun
from .resume.starting import CarefulStart, check_resume
from .scaling import accumulate_batches, fit_strategy, scale_lr, use_strategy
from .summary import say_changes, say_plan, say_summary
from .tracking import track as add_trackers

__all__ = ['add_options', 'build_runner', 'load_config', 'test', 'train']

CURVES_HOOK = 'mmext_backbones.CurvesHook'
PREDICTIONS_HOOK = 'mmext_backbones.PredictionsHook'
CHECKPOINT_HOOK = 'mmext_backbones.WholeCheckpointHook'
# in this order: a validation is noted as complete, the random state is put back, then a stop may be written
INTERRUPTION_HOOKS = [f'mmext_backbones.{name}' for name in ('RandomStateHook', 'PositionHook', 'PreemptionHook')]
NONFINITE_HOOK = 'mmext_backbones.NonFiniteHook'


# Changes that do not matter to a test.
TRAINING_KEYS = (
    'train_',
    'val_',
    'optim_wrapper',
    'param_scheduler',
    'default_hooks',
    'log_processor',
    'model.train_cfg',
)

# Changes that do not matter where predictions are given.
PREDICTING_KEYS = (
    'model',
    'data_preprocessor',
    'test_cfg',
    'tta_',
    'custom_hooks',
    *(f'test_dataloader.{key}' for key in ('batch_size', 'num_workers', 'sampler', 'dataset.pipeline')),
)


# --------------------------------------------------------------------------------------------------------------------
# The two runs


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line both tools share."""
    parser.add_argument('config', help='a config file, or a name like mmdet::path/inside/its/configs.py')
    parser.add_argument('--shapes', action='store_true', help="run on drawn shapes instead of the config's own data")
    parser.add_argument('--work-dir', help='where everything is written (default: work_dirs/<config>)')
    add_config_options(parser, 'config entries to override, applied after everything else')
    parser.add_argument(
        '--bf16', action='store_true', help='the backbone in bfloat16, the rest in float32; on the CPU as well'
    )
    parser.add_argument(
        '--bad-data', choices=MODES, help='stop at data that cannot be used (default), or leave it out and say so'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')
    add_traceback_option(parser)


def train(
    config: str,
    *,
    shapes: bool = False,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    bf16: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
    auto_scale_lr: bool = False,
    seed: int | None = None,
    strategy: str | None = None,
    accumulate: int = 1,
    bad_data: str | None = None,
    on_nonfinite: str | None = None,
    track: Sequence[str] | None = None,
) -> dict[str, float]:
    """Trains a config and validates it on the way.

    Args:
        config: Path of a config, or a name such as ``'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'``.
        shapes: Run on the Shapes data instead of the config's own.
        work_dir: Where everything is written; the config's, or ``work_dirs/<config name>``, when None.
        resume: A checkpoint to go on from, or ``'auto'`` for the last one in the work dir.
        amp: Mixed precision; needs a GPU.
        bf16: The backbone in bfloat16, the rest in float32; on the CPU as well.
        cfg_options: Dotted config keys with values, applied after everything else.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        auto_scale_lr: Scale the learning rate from the config's base batch size to that of a step, over all processes
            and accumulated batches.
        seed: Of every random choice; drawn when None.
        strategy: One of `scaling.STRATEGY_NAMES`; the config's own when None.
        accumulate: Batches behind a step of the optimizer, see `scaling.accumulate_batches`.
        bad_data: What to do with data that cannot be used: ``'stop'``, or ``'skip'``, which leaves it out and says so
            at the end; the config's `bad_data`, or ``'stop'``, when None.
        on_nonfinite: ``'stop'`` or ``'skip'``: what a loss or gradients that are not finite lead to, see
            `NonFiniteHook`; as the config says, or else stop, when None.
        track: What the training is followed with, see `tracking.track`; TensorBoard, where it is installed, when None.

    Returns:
        The metrics of the last validation; empty if there was none.

    Raises:
        UserError: if something that was asked for cannot be done.
        Preempted: after a signal that asks to stop: a `SystemExit`, when a checkpoint is written.
    """
    started = time.time()
    cfg, changes = _prepare(config, shapes, work_dir, cfg_options, launcher, bf16, bad_data, strategy)
    check_needed(cfg)
    if amp:
        _use_amp(cfg)
    if accumulate != 1:
        changes += accumulate_batches(cfg, accumulate)
    changes += fit_strategy(cfg, launcher, train=True)
    if auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable'):
        changes += scale_lr(cfg, world_size(launcher))
    if seed is not None:
        cfg.randomness = ConfigDict({**(cfg.get('randomness') or {}), 'seed': seed})
    _set_resume(cfg, resume)
    _add_hooks(cfg, [{'type': hook} for hook in (CURVES_HOOK, PREDICTIONS_HOOK, NONFINITE_HOOK, *INTERRUPTION_HOOKS)])
    _keep_checkpoints_whole(cfg)
    if on_nonfinite is not None:
        next(hook for hook in cfg.custom_hooks if hook['type'] == NONFINITE_HOOK)['action'] = on_nonfinite

    check_data(cfg, ('train', 'val'))
    check_checkpoints(cfg)
    check_resume(cfg)
    changes += add_trackers(cfg, track)
    _keep_seed(cfg)
    say_changes(changes, shapes)
    with contextlib.redirect_stdout(Chatter(sys.stdout)), naming_memory_settings(cfg, 'train'):
        runner = build_runner(cfg)
    say_plan(runner, cfg)
    with (
        contextlib.redirect_stdout(Chatter(sys.stdout)),
        naming_memory_settings(cfg, 'train'),
        telling_bad_data(runner),
    ):
        runner.train()
    metrics = {
        name.removeprefix('val/'): buffer.current()
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith('val/') and name not in ('val/time', 'val/data_time')
    }
    say_summary(cfg, metrics, started, config, shapes)
    return metrics


def test(
    config: str,
    checkpoint: str | None = None,
    *,
    predictions: str | None = None,
    out: str | None = None,
    shapes: bool = False,
    tta: bool = False,
    show_dir: str | None = None,
    work_dir: str | None = None,
    bf16: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
    bad_data: str | None = None,
) -> dict[str, float]:
    """Evaluates a checkpoint, or predictions that an earlier test saved.

    Args:
        config: As for `train`.
        checkpoint: A file written by a training, or an address mmengine can fetch.
        predictions: Instead of a checkpoint: a file that `out` wrote, or COCO results.
        out: Where to save the predictions, see `predictions`; nowhere when None.
        shapes: Test on the Shapes data instead of the config's own.
        tta: Test-time augmentation: predict several views of each picture and merge them.
        show_dir: Folder for one picture of ground truth and prediction per test image; none when None.
        work_dir: As for `train`.
        bf16: As for `train`.
        cfg_options: As for `train`.
        launcher: As for `train`.
        bad_data: As for `train`.

    Returns:
        The metrics. They and those of each class are also left as a file, see `results`.

    Raises:
        UserError: if something that was asked for cannot be done.
    """
    started = time.time()
    _check_sources(checkpoint, predictions, out=out, tta=tta, show_dir=show_dir, launcher=launcher)
    cfg, changes = _prepare(config, shapes, work_dir, cfg_options, launcher, bf16, bad_data)
    changes += fit_strategy(cfg, launcher, train=False)
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise UserError(f'config {config!r} has no test_dataloader or no test_evaluator: there is nothing to test on.')
    if tta:
        use_tta(cfg)
    cfg.load_from = checkpoint
    cfg.resume = False
    _add_hooks(cfg, [{'type': PREDICTIONS_HOOK, 'show_dir': show_dir}])

    check_data(cfg, ('test',))
    given = find_predictions(cfg, predictions) if predictions is not None else None
    state = check_checkpoint(checkpoint) if checkpoint is not None else None
    saved = save_predictions(cfg, out) if out is not None else []
    say_changes(changes, shapes, skip=TRAINING_KEYS if given is None else TRAINING_KEYS + PREDICTING_KEYS)
    if given is not None:
        _log_to_file(cfg)
        with contextlib.redirect_stdout(Chatter(sys.stdout)):
            metrics, per_class, num_images = evaluate_predictions(cfg, given)
    else:
        with contextlib.redirect_stdout(Chatter(sys.stdout)):
            runner = build_runner(cfg, train=False)
        if state is not None:
            check_match(runner.model, state, checkpoint, shapes)
        with (
            contextlib.redirect_stdout(Chatter(sys.stdout)),
            naming_memory_settings(cfg, 'test'),
            telling_bad_data(runner),
        ):
            per_class = record_classes(runner.test_evaluator)
            num_images = len(runner.test_dataloader.dataset)
            metrics = runner.test()

    files = [('saved', path) for path in saved if path.exists()]
    if is_main_process():
        record = describe(
            cfg,
            config,
            metrics=metrics,
            per_class=per_class,
            num_images=num_images,
            checkpoint=checkpoint,
            predictions=list(given.values()) if given is not None else None,
            options=cfg_options,
            shapes=shapes,
            tta=tta,
        )
        name = results_name(checkpoint or predictions, cfg, shapes=shapes, tta=tta)
        files.append(('results', _write_results(record, checkpoint or predictions, cfg.work_dir, name)))
    say_summary(cfg, metrics, started, config, shapes, show_dir=show_dir, per_class=per_class, files=files)
    return metrics


def _check_sources(
    checkpoint: str | None, predictions: str | None, *, out: str | None, tta: bool, show_dir: str | None, launcher: str
) -> None:
    """A test has a checkpoint or given predictions; the latter leave nothing to predict."""
    if checkpoint is None and predictions is None:
        raise UserError('what is to be tested? Name a checkpoint, or saved predictions with --predictions.')
    if checkpoint is not None and predictions is not None:
        raise UserError(
            f'a checkpoint ({checkpoint}) and --predictions {predictions}: only one of the two can be tested. '
            'Leave one out.'
        )
    if predictions is None:
        return
    unused = {'--out': out is not None, '--tta': tta, '--show-dir': show_dir is not None}
    unused['--launcher'] = launcher != 'none'
    for option, used in unused.items():
        if used:
            raise UserError(f'{option} needs a checkpoint: with --predictions no model runs. Leave it out.')


def _write_results(record: dict[str, Any], source: str, work_dir: str, name: str) -> Path:
    """Beside what was tested, or in the work dir if it cannot be written there."""
    beside = [] if '://' in source else [Path(source).parent]
    path = write_results(record, [*beside, work_dir], name)
    if beside and path.parent != beside[0]:
        say(f'\nFolder {beside[0]} cannot be written: the file of results is in the work dir.')
    return path


# --------------------------------------------------------------------------------------------------------------------
# The config


def _prepare(
    config: str,
    shapes: bool,
    work_dir: str | None,
    options: dict[str, Any] | None,
    launcher: str,
    bf16: bool,
    bad_data: str | None,
    strategy: str | None = None,
) -> tuple[Config, list[Change]]:
    """What both runs do first: the config, Shapes, the options (last, so that the user wins), the device."""
    quiet()
    check_launcher(launcher)
    cfg = load_config(config)
    if cfg.get('model') is None:
        raise UserError(f'config {config!r} has no model: is it a part that other configs inherit?')
    changes = []
    if shapes:
        check_config(cfg)
        data_dir = make_default_shapes()
        iters = (options or {}).get('train_cfg.max_iters')
        changes += use_shapes(cfg, data_dir, **({'iters': iters} if iters else {}))
    if bf16:
        changes += _use_bf16(cfg)
    if strategy is not None:
        changes += use_strategy(cfg, strategy)
    apply_options(cfg, options)
    check_config(cfg)
    changes += _fit_device(cfg, launcher) + fit_processes(cfg, launcher)
    if cfg.default_scope == 'mmpretrain':
        for split in ('train', 'val', 'test'):
            loader = cfg.get(f'{split}_dataloader')
            if loader is not None:
                loader.setdefault('collate_fn', {'type': 'default_collate'})
    cfg.launcher = launcher
    if bad_data is not None:
        cfg.bad_data = bad_data
    name = Path(cfg.filename).stem + ('_shapes' if shapes else '')
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    return cfg, changes


def make_default_shapes() -> Path:
    """The Shapes data set of the default parameters, drawn now if it is not there yet."""
    path = default_shapes_dir()
    with locked(path.parent / '.lock'):  # one process draws, and the others find it drawn
        if not path.exists():
            say(f'Drawing the Shapes data set in {path} ...')
        return make_shapes(path)


def _fit_device(cfg: Config, launcher: str) -> list[Change]:
    """No synchronised batch norm in a single process; without a GPU, no mixed precision either."""
    editor = ConfigEditor(cfg)
    on_cpu = get_device() == 'cpu'
    if launcher == 'none' or on_cpu:
        for path, node in walk(cfg.model, 'model'):
            if node.get('type') in ('SyncBN', 'MMSyncBN'):
                editor.set(f'{path}.type', 'BN')
    if on_cpu and str(editor.get('optim_wrapper.type')).endswith('AmpOptimWrapper'):
        editor.set('optim_wrapper.type', 'OptimWrapper')
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            editor.drop(f'optim_wrapper.{key}')
    return editor.changes


def _use_bf16(cfg: Config) -> list[Change]:
    editor = ConfigEditor(cfg)
    for path, node in walk(cfg.model, 'model'):
        if path.endswith('backbone') and str(node.get('type')).startswith(f'{MODELS.scope}.'):
            editor.set(f'{path}.autocast_dtype', 'bfloat16')
    if not editor.changes:
        raise UserError(f'--bf16 is about the backbones of {MODELS.scope}, and this config has none of them.')
    return editor.changes


def _use_amp(cfg: Config) -> None:
    if get_device() == 'cpu':
        raise UserError('--amp needs a GPU, and torch sees none here. Leave it out.')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp works with optim_wrapper.type=OptimWrapper, and this config has {kind!r}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _set_resume(cfg: Config, resume: str | None) -> None:
    if resume is None:
        return
    cfg.resume = True
    if resume != 'auto':
        cfg.load_from = resume
        return
    cfg.load_from = find_checkpoint(cfg.work_dir, say)
    if cfg.load_from is None:
        say(f'Nothing to resume in {cfg.work_dir}: training starts from the beginning.')
        cfg.resume = False


def _keep_seed(cfg: Config) -> None:
    """A resumed training has the seed of its checkpoint from the start: the order of the data follows from it."""
    seed = read_meta(cfg.load_from).get('seed') if cfg.get('resume') and cfg.get('load_from') else None
    if seed is None:
        return
    asked = (cfg.get('randomness') or {}).get('seed')
    if asked not in (None, seed):
        say(f'Seed {seed}, of the checkpoint, instead of {asked}: a resumed training keeps its own.')
    cfg.randomness = ConfigDict({**(cfg.get('randomness') or {}), 'seed': seed})


def _keep_checkpoints_whole(cfg: Config) -> None:
    """Our checkpoint hook in place of mmengine's; another one stays."""
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook'))
    if hook is not None and hook.type in ('CheckpointHook', 'mmengine.CheckpointHook'):
        hook.type = CHECKPOINT_HOOK


def _add_hooks(cfg: Config, hooks: Sequence[dict]) -> None:
    present = {hook['type'] for hook in cfg.get('custom_hooks') or []}
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *(hook for hook in hooks if hook['type'] not in present)]


# --------------------------------------------------------------------------------------------------------------------
# The runner


class _Run(GuardedData, SteadyRun, CarefulStart):
    """For a Runner class. The environment, the config and the hooks go to the log file, not over the screen; a test
    leaves the config of the training where it is, in the folder that both share; and the file that weights come from
    may hold nothing but them, which averaging hooks do not expect."""

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_load_checkpoint' and 'state_dict' not in kwargs['checkpoint']:
            kwargs['checkpoint'] = {'state_dict': unwrap(kwargs['checkpoint'], 'the checkpoint')}
        super().call_hook(fn_name, **kwargs)

    def build_logger(self, *args: Any, **kwargs: Any) -> logging.Logger:
        logger = shorten_console(super().build_logger(*args, **kwargs), testing=self._train_loop is None)
        announce(logger)
        return logger

    def dump_config(self) -> None:
        if self._train_loop is not None:
            super().dump_config()

    def build_strategy(self, *args: Any, **kwargs: Any) -> Any:
        """Of a FlexibleRunner, whose strategy has the log."""
        strategy = super().build_strategy(*args, **kwargs)
        announce(shorten_console(strategy.logger, testing=self._train_loop is None))
        return strategy


def build_runner(cfg: Config, *, train: bool = True) -> Runner:
    """The runner of a config; `runner_type` is honoured.

    Args:
        cfg: The config.
        train: Build what a training needs; without it, training and validation are left out.
    """
    if not train:
        cfg = cfg.copy()
        for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
            cfg[key] = None
        for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
            cfg[key] = None
    join_processes(cfg)
    runner_class = RUNNERS.get(cfg.get('runner_type', 'Runner'))
    runner = type(runner_class.__name__, (_Run, runner_class), {}).from_cfg(cfg)
    if isinstance(runner.model, dict):  # a FlexibleRunner would build it when it starts
        runner.model = runner.strategy.build_model(runner.model)
    return runner


def _log_to_file(cfg: Config) -> None:
    """The log of a run without a runner, where a runner would have it."""
    stamp = time.strftime('%Y%m%d_%H%M%S')
    path = Path(cfg.work_dir) / stamp / f'{stamp}.log'
    path.parent.mkdir(parents=True, exist_ok=True)
    shorten_console(MMLogger.get_instance(f'predictions_{time.time_ns()}', log_file=str(path)), testing=True)
