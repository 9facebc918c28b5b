"""Bringing a config from one process to many: the strategy, the batch of a step, and the learning rate that fits it."""

import importlib
from typing import Any

from mmengine.config import Config

from ..config.editing import Change, ConfigEditor
from ..config.files import load_config
from ..utils.errors import UserError

__all__ = ['STRATEGY_NAMES', 'accumulate_batches', 'fit_strategy', 'scale_lr', 'step_batch', 'use_strategy']

STRATEGY_NAMES = ('ddp', 'fsdp', 'deepspeed')
# what a schedule, a loop or a hook counts in iterations
SCHEDULE_KEYS = ('begin', 'end', 'T_max', 'total_iters', 'total_steps', 'step_size', 'milestones', 'periods')
LOOP_KEYS = ('max_iters', 'val_interval', 'val_begin')


def use_strategy(cfg: Config, name: str) -> list[Change]:
    """Takes `runner_type` and `strategy` from ``configs/_base_/strategies/<name>.py``."""
    base = load_config(f'mmext_backbones::_base_/strategies/{name}.py')
    editor = ConfigEditor(cfg)
    for key in ('runner_type', 'strategy'):
        if base[key] is None:
            editor.drop(key)
        else:
            editor.set(key, base[key])
    return editor.changes


def fit_strategy(cfg: Config, launcher: str, *, train: bool) -> list[Change]:
    """Brings the rest of a config in line with its strategy.

    A test needs no shards: it goes through the plain runner, whatever the checkpoint was trained with. DeepSpeed does
    itself what the optimizer wrapper does elsewhere, and gets its settings: accumulation, clipping, mixed precision.

    Raises:
        UserError: if a strategy cannot be had here, or not with something else that the config asks for.
    """
    kind = str((cfg.get('strategy') or {}).get('type', '')).rpartition('.')[2]
    if kind not in ('FSDPStrategy', 'DeepSpeedStrategy'):
        return []
    editor = ConfigEditor(cfg)
    if not train:
        editor.set('runner_type', 'Runner')
        editor.drop('strategy')
        return editor.changes
    if launcher == 'none':
        raise UserError(
            f'{kind} shards a model over several processes, and this is one. Start several, e.g. with '
            'tools/dist_train.sh CONFIG NUM_PROCESSES; for one, leave the strategy out.'
        )
    averaging = [hook['type'] for hook in cfg.get('custom_hooks') or [] if str(hook['type']).endswith('EMAHook')]
    if averaging:
        raise UserError(
            f'{kind} with {averaging[0]}: mmengine averages whole models, and no process has one here. Train with '
            '--strategy ddp, or without the hook: --cfg-options custom_hooks=[]'
        )
    if kind == 'DeepSpeedStrategy':
        try:
            importlib.import_module('deepspeed.runtime.fp16.onebit')
        except ImportError as error:  # not there, or later than mmengine knows
            raise UserError(
                f'DeepSpeedStrategy needs deepspeed, one with the optimizers that mmengine 0.10 registers ({error}): '
                'pip install "deepspeed<0.19". --strategy fsdp shards as well and needs nothing but torch.'
            ) from error
        _fit_deepspeed(editor)
    return editor.changes


def _fit_deepspeed(editor: ConfigEditor) -> None:
    wrapper = editor.get('optim_wrapper')
    clip = dict(wrapper.get('clip_grad') or {})
    if clip.pop('type', 'norm') != 'norm' or float(clip.pop('norm_type', 2)) != 2:
        raise UserError(f'DeepSpeed clips gradients by their 2-norm only, not as clip_grad={wrapper.clip_grad} asks.')
    if clip.get('max_norm'):
        editor.set('strategy.gradient_clipping', float(clip['max_norm']))
    if wrapper.get('accumulative_counts', 1) > 1:
        editor.set('strategy.gradient_accumulation_steps', wrapper.accumulative_counts)
    if wrapper.get('type', 'OptimWrapper') == 'AmpOptimWrapper':
        narrow = 'bf16' if wrapper.get('dtype') == 'bfloat16' else 'fp16'
        editor.set(f'strategy.{narrow}', {'enabled': True})
        editor.set('strategy.inputs_to_half', ['inputs'])
    editor.set('optim_wrapper.type', 'DeepSpeedOptimWrapper')
    for key in ('clip_grad', 'accumulative_counts', 'loss_scale', 'dtype', 'use_fsdp'):
        editor.drop(f'optim_wrapper.{key}')


def accumulate_batches(cfg: Config, count: int) -> list[Change]:
    """Sums the gradients of `count` batches before each step of the optimizer.

    What the config and its options count in iterations, they mean in steps: loops, schedules and checkpoints by
    iteration become `count` times as long, and averages of weights are taken once a step. What is counted in epochs
    stays.

    Raises:
        UserError: if `count` is below 1.
    """
    if count < 1:
        raise UserError(f'--accumulate {count}: expected at least 1.')
    editor = ConfigEditor(cfg)
    editor.set('optim_wrapper.accumulative_counts', count)
    loop = cfg.get('train_cfg') or {}
    if loop.get('by_epoch') is False or str(loop.get('type')).endswith('IterBasedTrainLoop'):
        _lengthen(editor, 'train_cfg', LOOP_KEYS, count)
        if loop.get('val_interval') is None and count > 1:
            editor.set('train_cfg.val_interval', 1000 * count)  # mmengine's own is 1000
    schedules = cfg.get('param_scheduler') or []
    for path in [f'param_scheduler.{i}' for i in range(len(schedules))] if isinstance(schedules, list) else []:
        if editor.get(f'{path}.by_epoch') is False:
            _lengthen(editor, path, SCHEDULE_KEYS, count)
    if editor.get('default_hooks.checkpoint.by_epoch') is False:
        _lengthen(editor, 'default_hooks.checkpoint', ('interval', 'save_begin'), count)
    for i, hook in enumerate(cfg.get('custom_hooks') or []):
        if str(hook['type']).endswith('EMAHook'):  # it averages after every iteration
            editor.set(f'custom_hooks.{i}.interval', hook.get('interval', 1) * count)
    return editor.changes


def _lengthen(editor: ConfigEditor, path: str, keys: tuple[str, ...], count: int) -> None:
    for key in keys:
        value = editor.get(f'{path}.{key}')
        if isinstance(value, (list, tuple)):
            editor.set(f'{path}.{key}', [item * count for item in value])
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            editor.set(f'{path}.{key}', value * count)


def step_batch(cfg: Config, processes: int) -> int | None:
    """Images behind one step of the optimizer, over all processes and accumulated batches; None if it is not known."""
    loader = cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size') or (loader.get('batch_sampler') or {}).get('batch_size')
    counts: Any = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    counts *= (cfg.get('strategy') or {}).get('gradient_accumulation_steps', 1)
    return batch and batch * processes * counts


def scale_lr(cfg: Config, processes: int) -> list[Change]:
    """Scales the learning rate in proportion to the batch of a step (arXiv 1706.02677).

    mmengine's `auto_scale_lr` leaves accumulated batches out, and DeepSpeedStrategy scales nothing; so it is done here
    and switched off there.

    Raises:
        UserError: if the config does not say for which batch its learning rate is, or has several optimizers.
    """
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if not base:
        raise UserError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, the batch its learning rate is for. '
            'Add one, or scale optim_wrapper.optimizer.lr yourself and leave the flag out.'
        )
    batch = step_batch(cfg, processes)
    rate = (cfg.optim_wrapper.get('optimizer') or {}).get('lr')
    if batch is None or rate is None:
        missing = 'train_dataloader.batch_size' if batch is None else 'optim_wrapper.optimizer.lr'
        raise UserError(f'--auto-scale-lr: the config has no {missing}, so there is nothing to scale. Leave it out.')
    editor = ConfigEditor(cfg)
    editor.set('optim_wrapper.optimizer.lr', rate * batch / base)
    cfg.auto_scale_lr.enable = False
    return editor.changes
