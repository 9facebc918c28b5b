"""Edits of a config for --epochs, --batch-size and --lr: the length of a training, its batch and its learning rate.

`use_epochs` keeps the shape of the schedule. What is a share of the run (the end of a decay, milestones, switches of
hooks) is scaled with it. A warm-up and the intervals of validations and checkpoints become shorter with a shorter run,
and stay as they are in a longer one.
"""

import contextlib
import copy
import math
import sys

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from ..config.editing import NOT_SET, ConfigEditor, type_name, walk
from ..utils.console import QuietStdout
from ..utils.errors import UserError
from ..utils.explain import explain
from ..utils.words import plural
from .config_edits import batch_of, step_batch

__all__ = ['length_note', 'rate_note', 'use_batch_size', 'use_epochs', 'use_lr']

NO_END = 10**9  # mmengine's value for a phase without an end
RATE = 'optim_wrapper.optimizer.lr'
# of hooks: the epoch or iteration of a switch
SWITCHES = {
    True: ('switch_epoch', 'num_last_epochs', 'begin_epoch', 'action_epoch'),
    False: ('begin_iter', 'action_iter'),
}


# --------------------------------------------------------------------------------------------------------------------
# --batch-size and --lr


def use_batch_size(editor: ConfigEditor, batch_size: int) -> None:
    """Training batches of `batch_size` images a process; the learning rate stays, see `rate_note`."""
    editor.set('train_dataloader.batch_size', batch_size)
    for part in ('sampler', 'batch_sampler'):
        for path, node in walk(editor.cfg.train_dataloader.get(part), f'train_dataloader.{part}'):
            if 'batch_size' in node:
                editor.set(f'{path}.batch_size', batch_size)


def rate_note(cfg: Config, old_batch: int | None, base: int | None, processes: int) -> str | None:
    """What another batch means for the learning rate, which is as it was; None if it means nothing.

    Args:
        cfg: With the new batch.
        old_batch: Images of a batch before, None if the config did not say.
        base: Images of a step that the rate is for, None if nobody says.
        processes: Of the run.
    """
    rate, step = _rate(cfg), step_batch(cfg, processes)
    batch = cfg.train_dataloader.batch_size
    if rate and base and step != base:
        return (
            f'The learning rate stays {rate:g}, which is for {plural(base, "image")} a step; this run has {step}. '
            f'In proportion it is {rate * step / base:g}: --auto-scale-lr, or a --lr of your own.'
        )
    if rate and not base and old_batch not in (None, batch):
        return (
            f'The learning rate stays {rate:g}, for batches of {batch} as for {old_batch}. In proportion it is '
            f'{rate * batch / old_batch:g}: --lr.'
        )
    return None


def length_note(cfg: Config, old_batch: int | None) -> str | None:
    """What another batch means for a run that is counted in iterations; None for other runs."""
    batch = cfg.train_dataloader.batch_size
    if 'max_iters' not in cfg.train_cfg or old_batch in (None, batch):
        return None
    return (
        f'The run stays {plural(cfg.train_cfg.max_iters, "iteration")} long and sees {batch / old_batch:g} times the '
        'images. --epochs counts images instead.'
    )


def use_lr(editor: ConfigEditor, lr: float) -> None:
    """A base learning rate; what is a multiple of it (layer decay, `lr_mult`) follows, as does the end of a decay.

    Raises:
        UserError: if the config has several optimizers.
    """
    cfg = editor.cfg
    optimizer = editor.get('optim_wrapper.optimizer')
    if not isinstance(optimizer, dict) or 'type' not in optimizer:
        raise UserError('--lr: the config has several optimizers. Set the rate of each with --cfg-options.')
    old = _rate(cfg)
    editor.set(RATE, lr)
    for path, node in walk(cfg.get('param_scheduler'), 'param_scheduler') if old else ():
        if type_name(node).endswith('LR') and node.get('eta_min'):
            editor.set(f'{path}.eta_min', node['eta_min'] * lr / old)
    if editor.get('auto_scale_lr.enable') is True:
        editor.set('auto_scale_lr.enable', False)


def _rate(cfg: Config) -> float | None:
    return ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')


# --------------------------------------------------------------------------------------------------------------------
# --epochs


def use_epochs(editor: ConfigEditor, epochs: int, processes: int = 1) -> None:
    """A training of `epochs` passes over the data, with its schedule, validations and checkpoints.

    A run that is counted in iterations stays so; how many they are follows from the training data, which are read.

    Args:
        editor: Of a config with its batch as it will be.
        epochs: 1 or more.
        processes: Of the run.

    Raises:
        UserError: if the config has no length, or its training data cannot be counted.
    """
    cfg = editor.cfg
    if 'max_epochs' in cfg.train_cfg:
        _stretch(editor, cfg.train_cfg.max_epochs, epochs, by_epoch=True)
    elif 'max_iters' in cfg.train_cfg:
        batch = batch_of(cfg)
        if batch is None:
            raise UserError('--epochs: the config has no train_dataloader.batch_size to count iterations with.')
        iters = math.ceil(epochs * _num_images(cfg) / (batch * processes))
        _stretch(editor, cfg.train_cfg.max_iters, max(1, iters), by_epoch=False)
    else:
        raise UserError('--epochs: train_cfg of the config has neither max_epochs nor max_iters.')


def _num_images(cfg: Config) -> int:
    try:
        scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine')
        with contextlib.redirect_stdout(QuietStdout(sys.stdout)), scope:
            return len(DATASETS.build(copy.deepcopy(cfg.train_dataloader.dataset)))
    except Exception as error:  # of any data set
        told = explain(error) or f'{type(error).__name__}: {error}'
        raise UserError(f'--epochs: the training data cannot be counted: {told}') from error


def _scaled(value: float, old: int, new: int) -> int:
    return math.floor(value * new / old + 0.5)


def _stretch(editor: ConfigEditor, old: int, new: int, *, by_epoch: bool) -> None:
    """Brings everything that is counted in epochs or iterations from a length to another."""
    if old == new:
        return
    unit = 'max_epochs' if by_epoch else 'max_iters'
    editor.set(f'train_cfg.{unit}', new)
    _shorten_interval(editor, 'train_cfg.val_interval', old, new)
    if isinstance(editor.get('train_cfg.val_begin'), int):
        editor.set('train_cfg.val_begin', min(new, max(1, _scaled(editor.get('train_cfg.val_begin'), old, new))))
    dynamic = editor.get('train_cfg.dynamic_intervals')
    if dynamic not in (NOT_SET, None):
        editor.set('train_cfg.dynamic_intervals', [(_scaled(at, old, new), every) for at, every in dynamic])
    checkpoint = editor.get('default_hooks.checkpoint')
    if isinstance(checkpoint, dict) and checkpoint.get('by_epoch', True) == by_epoch:
        _shorten_interval(editor, 'default_hooks.checkpoint.interval', old, new)
        if checkpoint.get('save_begin'):
            editor.set('default_hooks.checkpoint.save_begin', _scaled(checkpoint['save_begin'], old, new))
    keys = SWITCHES[False] + (SWITCHES[True] if by_epoch else ())
    for path, node in walk(editor.cfg.get('custom_hooks'), 'custom_hooks'):
        for key in keys:
            if isinstance(node.get(key), int) and node[key] > 0:
                editor.set(f'{path}.{key}', max(1, _scaled(node[key], old, new)))
    _stretch_schedules(editor, old, new, by_epoch)


def _shorten_interval(editor: ConfigEditor, path: str, old: int, new: int) -> None:
    value = editor.get(path)
    if new < old and isinstance(value, (int, float)) and value > 1:
        editor.set(path, max(1, math.floor(value * new / old)))


def _stretch_schedules(editor: ConfigEditor, old: int, new: int, by_epoch: bool) -> None:
    phases = [
        (path, node) for path, node in walk(editor.cfg.get('param_scheduler'), 'param_scheduler') if 'type' in node
    ]
    phases = [each for each in phases if by_epoch or not each[1].get('by_epoch', True)]
    warmups: dict[bool, tuple[int, int]] = {}  # in epochs and in iterations: the end before and after
    for _, node in phases:
        in_epochs, end = node.get('by_epoch', True), node.get('end', NO_END)
        known = end < old if in_epochs == by_epoch else end < NO_END
        if type_name(node).startswith(('Linear', 'Constant')) and not node.get('begin') and known:
            warmups[in_epochs] = (end, _warmup(node, old, new, by_epoch))
    short = [path for path, node in phases if _stretch_phase(editor, path, node, old, new, by_epoch, warmups)]
    for path in reversed(short):
        editor.drop(path)


def _warmup(node: dict, old: int, new: int, by_epoch: bool) -> int:
    """The end of a warm-up, 0 for none: in epochs it takes one at least, and never more than half of the run."""
    end, in_epochs = node['end'], node.get('by_epoch', True)
    if new >= old:
        return end
    # a warm-up of a single step would stay at its first value
    least = 1 if in_epochs and node.get('convert_to_iter_based') else 2
    wanted = max(least, _scaled(end, old, new))
    return 0 if in_epochs == by_epoch and wanted > new // 2 else wanted


def _stretch_phase(
    editor: ConfigEditor,
    path: str,
    node: dict,
    old: int,
    new: int,
    by_epoch: bool,
    warmups: dict[bool, tuple[int, int]],
) -> bool:
    """One phase of a schedule; True if nothing of it is left."""
    in_epochs = node.get('by_epoch', True)
    before, after = warmups.get(in_epochs, (0, 0))

    def place(value: int) -> int:
        if value >= NO_END:
            return value
        return after if value == before else _scaled(value, old, new)

    begin, end = node.get('begin', 0), node.get('end', old if in_epochs == by_epoch else NO_END)
    new_begin, new_end = place(begin), place(end)
    if new_end <= new_begin:
        return True
    for key, value in (('begin', new_begin), ('end', new_end)):
        if key in node:
            editor.set(f'{path}.{key}', value)
    for key in ('T_max', 'total_iters', 'total_steps', 'step_size'):
        value = node.get(key)
        if isinstance(value, int) and value < NO_END:
            whole = key == 'T_max' and value == end - begin
            editor.set(f'{path}.{key}', new_end - new_begin if whole else max(1, _scaled(value, old, new)))
    for key in ('milestones', 'periods'):
        if isinstance(node.get(key), (list, tuple)):
            values = [max(1, _scaled(value, old, new)) for value in node[key]]
            if key == 'milestones':
                last = new - 1 if in_epochs == by_epoch else NO_END
                values = sorted({min(value, last) for value in values} - {0})
            editor.set(f'{path}.{key}', values)
    return False
