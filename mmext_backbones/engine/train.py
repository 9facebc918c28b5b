"""A training: the config is read, edited and checked, a runner is built, and run."""

import time
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from ..config.data_paths import check_data
from ..config.dialect import old_keys
from ..config.editing import ConfigEditor
from ..config.values import check_needed
from ..datasets.bad_data.runner import report_bad_data
from ..utils.attempts import attempt
from ..utils.console import say
from .config_edits import (
    CURVES_HOOK,
    INTERRUPTION_HOOKS,
    NONFINITE_HOOK,
    PREDICTIONS_HOOK,
    batch_of,
    fit_seed,
    fit_strategy,
    use_accumulation,
    use_amp,
    use_hooks,
    use_resume,
    use_scaled_lr,
    use_seed,
    use_trackers,
    use_whole_checkpoints,
)
from .length_edits import length_note, rate_note, use_batch_size, use_epochs, use_lr
from .options import TrainOptions
from .processes import on_device, world_size
from .resume.starting import check_resume
from .resume.work_dir_lock import lock_work_dir
from .runner import build_runner
from .setup import check_checkpoints, prepare, watched
from .summary import say_changes, say_plan, say_summary

__all__ = ['train']


@on_device
def train(config: str, **options: Any) -> dict[str, float]:
    """Trains a config and validates it on the way.

    Args:
        config: Path of a config, or a name such as ``'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'``.
        **options: Fields of `TrainOptions`.

    Returns:
        The metrics of the last validation; empty if there was none.

    Raises:
        UserError: if something that was asked for cannot be done.
        Preempted: after a signal that asks to stop: a `SystemExit`, when a checkpoint is written.
    """
    started = time.time()
    asked = TrainOptions(**options)
    editor = prepare(config, asked, asked.strategy)
    cfg = editor.cfg
    check_needed(cfg)
    with lock_work_dir(cfg.work_dir):
        _edit(editor, asked)
        _check(cfg)
        fit_seed(editor)
        _warn_of_old_keys(cfg)
        say_changes(editor.changes, asked.shapes)
        with watched(cfg, 'train'):
            runner = build_runner(cfg)
        say_plan(runner, cfg)
        with watched(cfg, 'train'), report_bad_data(runner):
            runner.train()
    metrics = _last_validation(runner)
    say_summary(cfg, metrics, started, config, asked)
    return metrics


def _edit(editor: ConfigEditor, asked: TrainOptions) -> None:
    if asked.amp:
        use_amp(editor)
    if asked.accumulate != 1:
        use_accumulation(editor, asked.accumulate)
    _edit_length(editor, asked)
    fit_strategy(editor, asked.launcher, train=True)
    if asked.auto_scale_lr or (editor.cfg.get('auto_scale_lr') or {}).get('enable'):
        use_scaled_lr(editor, world_size(asked.launcher))
    if asked.seed is not None:
        use_seed(editor, asked.seed)
    resume = asked.resume
    if resume is None and editor.cfg.get('resume'):  # as the config has it
        resume = editor.cfg.get('load_from') or 'auto'
    if resume is not None:
        use_resume(editor, resume)
    hooks = (CURVES_HOOK, PREDICTIONS_HOOK, NONFINITE_HOOK, *INTERRUPTION_HOOKS)
    use_hooks(editor, [{'type': hook} for hook in hooks])
    use_whole_checkpoints(editor)
    if asked.on_nonfinite is not None:
        next(hook for hook in editor.cfg.custom_hooks if hook['type'] == NONFINITE_HOOK)['action'] = asked.on_nonfinite
    use_trackers(editor, asked.track)
    if editor.cfg.get('resume') and (asked.lr is not None or asked.epochs is not None):
        say('\nResumed: learning rate and schedule are those of the checkpoint, whatever --lr and --epochs say.')


def _edit_length(editor: ConfigEditor, asked: TrainOptions) -> None:
    cfg, processes, old_batch = editor.cfg, world_size(asked.launcher), batch_of(editor.cfg)
    if asked.lr is not None:
        use_lr(editor, asked.lr)
    if asked.batch_size is not None:
        use_batch_size(editor, asked.batch_size)
        scaled = asked.auto_scale_lr or (cfg.get('auto_scale_lr') or {}).get('enable')
        # the rate of Shapes is for its own batch, not for that of the recipe
        base = None if asked.shapes else (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
        notes = [None if asked.lr is not None or scaled else rate_note(cfg, old_batch, base, processes)]
        notes += [length_note(cfg, old_batch) if asked.epochs is None else None]
        for note in filter(None, notes):
            say(f'\n{note}')
    if asked.epochs is not None:
        check_data(cfg, ('train',))
        use_epochs(editor, asked.epochs, processes)


def _check(cfg: Config) -> None:
    check_data(cfg, ('train', 'val'))
    check_checkpoints(cfg)
    check_resume(cfg)


def _warn_of_old_keys(cfg: Config) -> None:
    """Says which settings of the dialect of mmdet 2 do nothing."""
    for key, place in attempt('the look for old keys', old_keys, cfg, default=()):
        say(f'Warning: nothing reads {key}, a key of mmdet 2. In mmengine: {place}. See docs/migration.md')


def _last_validation(runner: Runner) -> dict[str, float]:
    return {
        name.removeprefix('val/'): buffer.current()
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.startswith('val/') and name not in ('val/time', 'val/data_time')
    }
