"""Edits of a config before a run: `use_*` does what the user asked for, `fit_*` what the machine demands.

Each takes the one `ConfigEditor` of the run. What a person should be told goes through the editor, which remembers it;
the rest (our hooks, the seed, where checkpoints come from) is set on its config.
"""

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from ..config.editing import ConfigEditor, type_name, walk
from ..config.files import load_config
from ..registry import MODELS
from ..utils.console import say
from ..utils.errors import UserError
from ..weights.checkpoints import read_meta
from .resume.position import find_checkpoint

__all__ = [
    'CURVES_HOOK',
    'INTERRUPTION_HOOKS',
    'NONFINITE_HOOK',
    'PREDICTIONS_HOOK',
    'STRATEGY_NAMES',
    'TRACKERS',
    'batch_of',
    'fit_device',
    'fit_processes',
    'fit_seed',
    'fit_strategy',
    'step_batch',
    'use_accumulation',
    'use_amp',
    'use_bf16',
    'use_hooks',
    'use_resume',
    'use_scaled_lr',
    'use_seed',
    'use_strategy',
    'use_trackers',
    'use_whole_checkpoints',
]

CHECKPOINT_HOOK = 'mmext_backbones.WholeCheckpointHook'
CURVES_HOOK = 'mmext_backbones.CurvesHook'
PREDICTIONS_HOOK = 'mmext_backbones.PredictionsHook'
NONFINITE_HOOK = 'mmext_backbones.NonFiniteHook'
# in this order: a validation is noted as complete, the random state is put back, then a stop may be written
INTERRUPTION_HOOKS = [
    f'mmext_backbones.{name}' for name in ('RandomStateHook', 'HookStateHook', 'PositionHook', 'PreemptionHook')
]
STRATEGY_NAMES = ('ddp', 'fsdp', 'deepspeed')
# what a schedule, a loop or a hook counts in iterations
SCHEDULE_KEYS = ('begin', 'end', 'T_max', 'total_iters', 'total_steps', 'step_size', 'milestones', 'periods')
LOOP_KEYS = ('max_iters', 'val_interval', 'val_begin')


def use_strategy(editor: ConfigEditor, name: str) -> None:
    """Takes `runner_type` and `strategy` from ``configs/_base_/strategies/<name>.py``."""
    base = load_config(f'mmext_backbones::_base_/strategies/{name}.py')
    for key in ('runner_type', 'strategy'):
        if base[key] is None:
            editor.drop(key)
        else:
            editor.set(key, base[key])


def fit_strategy(editor: ConfigEditor, launcher: str, *, train: bool) -> None:
    """Brings the rest of a config in line with its strategy.

    A test needs no shards: it goes through the plain runner, whatever the checkpoint was trained with. DeepSpeed does
    itself what the optimizer wrapper does elsewhere, and gets its settings: accumulation, clipping, mixed precision.

    Raises:
        UserError: if a strategy cannot be had here, or not with something else that the config asks for.
    """
    cfg = editor.cfg
    kind = type_name(cfg.get('strategy'))
    if kind not in ('FSDPStrategy', 'DeepSpeedStrategy'):
        return
    if not train:
        editor.set('runner_type', 'Runner')
        editor.drop('strategy')
        return
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


def use_accumulation(editor: ConfigEditor, count: int) -> None:
    """Sums the gradients of `count` batches before each step of the optimizer.

    What the config and its options count in iterations, they mean in steps: loops, schedules and checkpoints by
    iteration become `count` times as long, and averages of weights are taken once a step. What is counted in epochs
    stays.

    Raises:
        UserError: if `count` is below 1.
    """
    if count < 1:
        raise UserError(f'--accumulate {count}: expected at least 1.')
    cfg = editor.cfg
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


def _lengthen(editor: ConfigEditor, path: str, keys: tuple[str, ...], count: int) -> None:
    for key in keys:
        value = editor.get(f'{path}.{key}')
        if isinstance(value, (list, tuple)):
            editor.set(f'{path}.{key}', [item * count for item in value])
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            editor.set(f'{path}.{key}', value * count)


def batch_of(cfg: Config) -> int | None:
    """Images of a training batch on one process; None if it is not known."""
    loader = cfg.get('train_dataloader') or {}
    return loader.get('batch_size') or (loader.get('batch_sampler') or {}).get('batch_size')


def step_batch(cfg: Config, processes: int) -> int | None:
    """Images behind one step of the optimizer, over all processes and accumulated batches; None if it is not known."""
    batch = batch_of(cfg)
    counts: Any = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    counts *= (cfg.get('strategy') or {}).get('gradient_accumulation_steps', 1)
    return batch and batch * processes * counts


def use_scaled_lr(editor: ConfigEditor, processes: int) -> None:
    """Scales the learning rate in proportion to the batch of a step (arXiv 1706.02677).

    mmengine's `auto_scale_lr` leaves accumulated batches out, and DeepSpeedStrategy scales nothing; so it is done here
    and switched off there.

    Raises:
        UserError: if the config does not say for which batch its learning rate is, or has several optimizers.
    """
    cfg = editor.cfg
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
    editor.set('optim_wrapper.optimizer.lr', rate * batch / base)
    cfg.auto_scale_lr.enable = False


TRACKERS = ('tensorboard', 'mlflow', 'wandb', 'none')
# mmengine's backend, whose name ours takes for hooks that ask the visualizer for it; ours; the packages it needs
BACKENDS = {
    'tensorboard': ('TensorboardVisBackend', 'mmext_backbones.TensorBoardBackend', 'tensorboard'),
    'mlflow': ('MLflowVisBackend', 'mmext_backbones.MLflowBackend', 'mlflow'),
    'wandb': ('WandbVisBackend', 'mmext_backbones.WandbBackend', 'wandb'),
}


def use_trackers(editor: ConfigEditor, trackers: Sequence[str] | None = None) -> None:
    """Adds trackers to the visualizer of a config, beside those it has.

    Args:
        editor: Of a training's config, in which `resume` and `load_from` are set.
        trackers: Of `TRACKERS`; TensorBoard, where it is installed, when None.

    Raises:
        UserError: for a tracker that is asked for and not installed.
    """
    cfg = editor.cfg
    asked = trackers is not None
    trackers = list(dict.fromkeys(trackers or ['tensorboard']))
    if 'none' in trackers and len(trackers) > 1:
        raise UserError(f'--track {" ".join(trackers)}: none goes with no other tracker.')
    backends = _backends(cfg)
    wanted = list(backends)
    for name in trackers:
        if name == 'none':
            continue
        theirs, ours, package = BACKENDS[name]
        backend = {'type': ours, 'name': theirs}
        if cfg.get('resume'):
            backend['resume_from'] = cfg.load_from
        # ours is there already in the config that an earlier training left: of another checkpoint, perhaps
        place = next((i for i, each in enumerate(backends) if theirs in (type_name(each), each.get('name'))), None)
        if place is not None:
            if type_name(backends[place]) == type_name(backend):
                wanted[place] = backend
            continue
        if importlib.util.find_spec(package) is None:
            if asked:
                raise UserError(f'--track {name}: {package} is not installed. pip install {package}')
            say(f'{package} is not installed: this training leaves no event files (pip install {package}).')
            continue
        wanted.append(backend)
    if wanted == backends:
        return
    if cfg.get('visualizer') is None:
        editor.set('visualizer', {'type': 'Visualizer', 'vis_backends': [{'type': 'LocalVisBackend'}, *wanted]})
    else:
        editor.set('visualizer.vis_backends', wanted)


def _backends(cfg: Config) -> list[dict]:
    """Those of the config's visualizer; mmengine also takes one without a list."""
    backends = (cfg.get('visualizer') or {}).get('vis_backends') or []
    return [backends] if isinstance(backends, dict) else list(backends)


def fit_processes(editor: ConfigEditor, launcher: str) -> None:
    """Without a GPU: gloo, and wrappers of the model that ask for no device."""
    if launcher == 'none' or get_device() != 'cpu':
        return
    cfg = editor.cfg
    editor.set('env_cfg.dist_cfg.backend', 'gloo')
    if cfg.get('runner_type', 'Runner') == 'Runner':
        if cfg.get('model_wrapper_cfg') is None:  # mmengine's own choice for this case, which it makes for GPUs only
            unused = bool(cfg.get('find_unused_parameters'))
            wrapper = {'type': 'MMDistributedDataParallel', 'broadcast_buffers': False}
            cfg.model_wrapper_cfg = {**wrapper, 'find_unused_parameters': unused}
        cfg.model_wrapper_cfg.device_ids = None
    elif str((cfg.get('strategy') or {}).get('type', 'DDPStrategy')) == 'DDPStrategy':
        wrapper = (cfg.get('strategy') or {}).get('model_wrapper') or {'broadcast_buffers': False}
        cfg.strategy = {'type': 'DDPStrategy', **(cfg.get('strategy') or {})}
        cfg.strategy.model_wrapper = {'type': 'MMDistributedDataParallel', **wrapper, 'device_ids': None}


def fit_device(editor: ConfigEditor, launcher: str) -> None:
    """No synchronised batch norm in a single process; without a GPU, no mixed precision either."""
    on_cpu = get_device() == 'cpu'
    if launcher == 'none' or on_cpu:
        for path, node in walk(editor.cfg.model, 'model'):
            if node.get('type') in ('SyncBN', 'MMSyncBN'):
                editor.set(f'{path}.type', 'BN')
    if on_cpu and str(editor.get('optim_wrapper.type')).endswith('AmpOptimWrapper'):
        editor.set('optim_wrapper.type', 'OptimWrapper')
        for key in ('loss_scale', 'dtype', 'use_fsdp'):
            editor.drop(f'optim_wrapper.{key}')


def use_bf16(editor: ConfigEditor) -> None:
    """Lets the backbones of a model that are ours compute in bfloat16.

    Raises:
        UserError: if there is none.
    """
    found = False
    for path, node in walk(editor.cfg.model, 'model'):
        if path.endswith('backbone') and str(node.get('type')).startswith(f'{MODELS.scope}.'):
            editor.set(f'{path}.autocast_dtype', 'bfloat16')
            found = True
    if not found:
        raise UserError(f'--bf16 is about the backbones of {MODELS.scope}, and this config has none of them.')


def use_amp(editor: ConfigEditor) -> None:
    """Mixed precision, by mmengine's wrapper of the optimizer.

    Raises:
        UserError: without a GPU, or for another wrapper than the plain one.
    """
    cfg = editor.cfg
    if get_device() == 'cpu':
        raise UserError('--amp needs a GPU, and torch sees none here. Leave it out.')
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp works with optim_wrapper.type=OptimWrapper, and this config has {kind!r}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def use_resume(editor: ConfigEditor, resume: str) -> None:
    """Goes on from a checkpoint, or for ``'auto'`` from the last one in the work dir, if there is one.

    Raises:
        UserError: if the checkpoint is damaged, or none of several can be resumed from.
    """
    cfg = editor.cfg
    cfg.resume = True
    if resume != 'auto':
        cfg.load_from = resume
        read_meta(resume)  # compares the checksums of a file, once for all that read it later
        return
    cfg.load_from = find_checkpoint(cfg.work_dir, say)
    if cfg.load_from is None:
        say(f'Nothing to resume in {cfg.work_dir}: training starts from the beginning.')
        cfg.resume = False


def use_seed(editor: ConfigEditor, seed: int) -> None:
    """The seed of every random choice."""
    cfg = editor.cfg
    cfg.randomness = ConfigDict({**(cfg.get('randomness') or {}), 'seed': seed})


def fit_seed(editor: ConfigEditor) -> None:
    """A resumed training has the seed of its checkpoint from the start: the order of the data follows from it."""
    cfg = editor.cfg
    seed = read_meta(cfg.load_from).get('seed') if cfg.get('resume') and cfg.get('load_from') else None
    if seed is None:
        return
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        told = str(seed)[:100]
        raise UserError(f'checkpoint {cfg.load_from!r} cannot be resumed: its seed is {told}, no integer below 2**32.')
    asked = (cfg.get('randomness') or {}).get('seed')
    if asked not in (None, seed):
        say(f'Seed {seed}, of the checkpoint, instead of {asked}: a resumed training keeps its own.')
    use_seed(editor, seed)


def use_whole_checkpoints(editor: ConfigEditor) -> None:
    """Our checkpoint hook in place of mmengine's; another one stays."""
    hooks = editor.cfg.setdefault('default_hooks', ConfigDict())
    hook = hooks.setdefault('checkpoint', ConfigDict(type='CheckpointHook'))
    if hook is not None and hook.type in ('CheckpointHook', 'mmengine.CheckpointHook'):
        hook.type = CHECKPOINT_HOOK


def use_hooks(editor: ConfigEditor, hooks: Sequence[dict]) -> None:
    """Adds custom hooks; one of the same type, as in the config that a training leaves, gets what is given."""
    cfg = editor.cfg
    present = list(cfg.get('custom_hooks') or [])
    for hook in hooks:
        same = [each for each in present if each['type'] == hook['type']]
        for each in same:
            each.update(hook)
        present += [] if same else [hook]
    cfg.custom_hooks = present
