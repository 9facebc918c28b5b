"""A test: of a checkpoint, of an exported file, or of predictions that an earlier test saved."""

import contextlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger

from ..config.data_paths import check_data
from ..config.editing import ConfigEditor
from ..datasets.bad_data.runner import report_bad_data
from ..utils.attempts import MayFail
from ..utils.console import QuietStdout, say, shorten_console
from ..utils.errors import UserError
from ..weights.checkpoints import check_checkpoint, check_match
from .config_edits import PREDICTIONS_HOOK, fit_strategy, use_hooks
from .evaluation.exported import check_classes, use_file
from .evaluation.per_class import PerClass, record_classes
from .evaluation.predictions import evaluate_predictions, find_predictions, save_predictions
from .evaluation.results import describe, results_name, write_results
from .evaluation.tta import use_tta
from .options import RUNTIMES, TestOptions
from .processes import on_device
from .runner import build_runner
from .setup import make_work_dir, prepare, watched
from .summary import say_changes, say_summary

__all__ = ['test']

# In the work dir, until the results are written: that of the training stays.
SHEET = 'predictions_test.png'
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
# Changes that do not matter where a file is run, or predictions are given.
MODEL_KEYS = ('model', 'data_preprocessor')
PREDICTING_KEYS = (
    *MODEL_KEYS,
    'test_cfg',
    'tta_',
    'custom_hooks',
    *(f'test_dataloader.{key}' for key in ('batch_size', 'num_workers', 'sampler', 'dataset.pipeline')),
)


@on_device
def test(config: str, checkpoint: str | None = None, **options: Any) -> dict[str, float]:
    """Evaluates a checkpoint, an exported file, or predictions that an earlier test saved.

    Args:
        config: Path of a config, or a name such as ``'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'``.
        checkpoint: A file written by a training, or an address mmengine can fetch.
        **options: Fields of `TestOptions`.

    Returns:
        The metrics. They and those of each class are also left as a file, see `evaluation.results`.

    Raises:
        UserError: if something that was asked for cannot be done.
    """
    started = time.time()
    asked = TestOptions(**options)
    _check_sources(checkpoint, asked)
    editor = prepare(config, asked)
    cfg = editor.cfg
    if cfg.get('test_dataloader') is None or cfg.get('test_evaluator') is None:
        raise UserError(f'config {config!r} has no test_dataloader or no test_evaluator: there is nothing to test on.')
    _edit(editor, checkpoint, asked)
    make_work_dir(cfg.work_dir)
    check_data(cfg, ('test',))
    given = find_predictions(cfg, asked.predictions) if asked.predictions is not None else None
    state = check_checkpoint(checkpoint) if checkpoint is not None else None
    saved = save_predictions(cfg, asked.out) if asked.out is not None else []
    unused = PREDICTING_KEYS if given is not None else MODEL_KEYS if asked.onnx is not None else ()
    say_changes(editor.changes, asked.shapes, skip=TRAINING_KEYS + unused)
    if given is not None:
        _log_to_file(cfg)
        with contextlib.redirect_stdout(QuietStdout(sys.stdout)):
            metrics, per_class, num_images = evaluate_predictions(cfg, given)
    else:
        metrics, per_class, num_images = _run(cfg, checkpoint, state, asked)

    files = [('saved', path) for path in saved if path.exists()]
    if is_main_process():
        with MayFail('the file of results'):
            record = describe(
                cfg,
                config,
                metrics=metrics,
                per_class=per_class,
                num_images=num_images,
                checkpoint=checkpoint or asked.onnx,
                runtime=runtime_of(asked),
                predictions=list(given.values()) if given is not None else None,
                options=asked.cfg_options,
                shapes=asked.shapes,
                tta=asked.tta,
            )
            source = checkpoint or asked.onnx or asked.predictions
            name = results_name(source, cfg, shapes=asked.shapes, tta=asked.tta)
            results = _write_results(record, source, cfg.work_dir, name)
            files += [*_pictures(Path(cfg.work_dir) / SHEET, results, started), ('results', results)]
    say_summary(cfg, metrics, started, config, asked, per_class=per_class, files=files)
    return metrics


def _pictures(sheet: Path, results: Path, started: float) -> list[tuple[str, Path]]:
    """The sheet of the test, brought beside its results, under their name; none where nothing was drawn."""
    if not sheet.is_file() or sheet.stat().st_mtime < started:
        return []
    return [('predictions', Path(shutil.move(sheet, results.with_suffix('.png'))))]


def _edit(editor: ConfigEditor, checkpoint: str | None, asked: TestOptions) -> None:
    cfg = editor.cfg
    fit_strategy(editor, asked.launcher, train=False)
    if asked.tta:
        use_tta(cfg)
    cfg.load_from = checkpoint
    cfg.resume = False
    if asked.onnx is not None:
        use_file(cfg, asked.onnx, runtime_of(asked))
    drawing = {} if asked.threshold is None else {'score_thr': asked.threshold}
    if asked.show_dir:
        drawing['show_dir'] = asked.show_dir
    drawing['file'] = str(Path(cfg.work_dir) / SHEET)
    use_hooks(editor, [{'type': PREDICTIONS_HOOK, **drawing}])


def _run(
    cfg: Config, checkpoint: str | None, state: dict | None, asked: TestOptions
) -> tuple[dict[str, float], PerClass | None, int]:
    """Predicts and evaluates: the metrics, those of each class, and the number of images."""
    with contextlib.redirect_stdout(QuietStdout(sys.stdout)):
        runner = build_runner(cfg, train=False)
    if state is not None:
        check_match(runner.model, state, checkpoint, asked.shapes)
    with watched(cfg, 'test'), report_bad_data(runner):
        per_class = record_classes(runner.test_evaluator)
        num_images = len(runner.test_dataloader.dataset)
        if asked.onnx is not None:
            check_classes(asked.onnx, runtime_of(asked), runner.test_dataloader.dataset)
        return runner.test(), per_class, num_images


def _check_sources(checkpoint: str | None, asked: TestOptions) -> None:
    """A test has a checkpoint, a file or given predictions; the latter leave nothing to predict."""
    named = {'a checkpoint': checkpoint, '--onnx': asked.onnx, '--predictions': asked.predictions}
    named = {name: value for name, value in named.items() if value is not None}
    if not named:
        raise UserError(
            'what is to be tested? Name a checkpoint, an exported file with --onnx, or saved predictions with '
            '--predictions.'
        )
    if len(named) > 1:
        told = ' and '.join(f'{name} {value}' for name, value in named.items())
        raise UserError(f'{told}: only one of them can be tested. Leave the others out.')
    if asked.runtime is not None and asked.onnx is None:
        raise UserError(f'--runtime {asked.runtime} is for a file named with --onnx. Leave it out.')
    if checkpoint is not None:
        return
    unused = {'--tta': asked.tta, '--launcher': asked.launcher != 'none', '--bf16': asked.bf16}
    why = 'a file runs as it was exported, in one process'
    if asked.predictions is not None:
        del unused['--bf16']
        unused |= {'--out': asked.out is not None, '--show-dir': asked.show_dir is not None}
        unused['--threshold'] = asked.threshold is not None
        why = 'with --predictions no model runs'
    for option, used in unused.items():
        if used:
            raise UserError(f'{option} needs a checkpoint: {why}. Leave it out.')


def runtime_of(asked: TestOptions) -> str | None:
    """What runs the file of a test; None where there is none."""
    return None if asked.onnx is None else asked.runtime or RUNTIMES[0]


def _write_results(record: dict[str, Any], source: str, work_dir: str, name: str) -> Path:
    """Beside what was tested, or in the work dir if it cannot be written there."""
    beside = [] if '://' in source else [Path(source).parent]
    path = write_results(record, [*beside, work_dir], name)
    if beside and path.parent != beside[0]:
        say(f'\nFolder {beside[0]} cannot be written: the file of results is in the work dir.')
    return path


def _log_to_file(cfg: Config) -> None:
    """The log of a run without a runner, where a runner would have it."""
    stamp = time.strftime('%Y%m%d_%H%M%S')
    path = Path(cfg.work_dir) / stamp / f'{stamp}.log'
    path.parent.mkdir(parents=True, exist_ok=True)
    shorten_console(MMLogger.get_instance(f'predictions_{time.time_ns()}', log_file=str(path)), testing=True)
