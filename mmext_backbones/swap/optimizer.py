"""Fits the optimizer to the new backbone: AdamW, and no weight decay where its family has none."""

from collections.abc import Iterable, Mapping
from typing import Any

from mmengine.config import Config, ConfigDict
from torch import nn

from ..config.editing import type_name
from ..registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['fit_optimizer']

NO_DECAY = ('absolute_pos_embed', 'relative_position_bias_table', 'norm')  # as configs/_base_/no_decay.py
SGD = ('SGD', 'RMSprop')
WARMUP_ITERS = 1500
# learning rate and decay for the batch of the original: those of configs/_base_/schedules
ADAMW = {'detection': (1e-4, 0.05), 'segmentation': (6e-5, 0.01), 'classification': (1e-3, 0.05)}
CLASSIFICATION_BATCH = 1024  # of the rate above; in proportion for others


def fit_optimizer(cfg: Config, task: str, backbone: nn.Module, *, keep: bool) -> None:
    """Changes `cfg.optim_wrapper` and `cfg.param_scheduler`, if there are any.

    SGD becomes AdamW with the family's rate; any other optimizer stays, and only learns what is not decayed.

    Args:
        cfg: The config.
        task: As in `ADAMW`.
        backbone: The new one; its parameters' names are read.
        keep: Leave the optimizer as it is; only rules for the layers of the old backbone are replaced.
    """
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None or not isinstance(wrapper.get('optimizer'), Mapping):
        return
    _layer_decay(wrapper)
    if keep:
        return
    if type_name(wrapper.optimizer) in SGD:
        old_lr = wrapper.optimizer.get('lr')
        lr, weight_decay = ADAMW[task]
        if task == 'classification':
            batch = (cfg.get('auto_scale_lr') or {}).get('base_batch_size', CLASSIFICATION_BATCH)
            lr *= batch / CLASSIFICATION_BATCH
        wrapper.optimizer = ConfigDict(type='AdamW', lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay)
        _fit_schedule(cfg, task, lr / old_lr if old_lr else 1)
    rules = wrapper.get('paramwise_cfg') or ConfigDict()
    keys = rules.get('custom_keys') or ConfigDict()
    rules.custom_keys = ConfigDict({**keys, **_no_decay(keys, backbone)})
    wrapper.paramwise_cfg = rules


def _layer_decay(wrapper: ConfigDict) -> None:
    """Layer-wise rates of mmdet, mmseg and mmpretrain, which know other backbones only, become ours."""
    rules = wrapper.get('paramwise_cfg') or {}
    rate = rules.get('decay_rate', rules.get('layer_decay_rate'))
    constructor = wrapper.get('constructor')
    name = constructor if isinstance(constructor, str) else getattr(constructor, '__name__', '')
    if 'Decay' not in name or rate is None:
        return
    kept = {key: value for key, value in rules.items() if key not in ('decay_rate', 'decay_type', 'num_layers')}
    wrapper.constructor = f'{OPTIM_WRAPPER_CONSTRUCTORS.scope}.LayerDecayOptimWrapperConstructor'
    wrapper.paramwise_cfg = ConfigDict({**kept, 'layer_decay_rate': rate})


def _no_decay(keys: Mapping[str, Any], backbone: nn.Module) -> dict[str, ConfigDict]:
    """The rules to add to `custom_keys`.

    mmengine takes the longest key that occurs in a parameter's name, and that one alone. So where the backbone has a
    rate of its own (`backbone`, as in DETR), its norms need longer keys, which repeat that rate.
    """
    rate = keys.get('backbone', {}).get('lr_mult', 1.0)
    mults = {'lr_mult': rate} if rate != 1.0 else {}
    parameters = [name for name, _ in backbone.named_parameters()]
    names = dict.fromkeys(key for key in NO_DECAY if any(key in name for name in parameters))
    if 'backbone' in keys:
        names |= dict.fromkeys(_norm_keys(parameters))
    rules = {}
    for name in names:
        mult = {} if name == 'norm' else mults
        if not any(key.strip('.') == name for key in keys):
            rules[name] = ConfigDict(**mult, decay_mult=0.0)
    return rules


def _norm_keys(parameters: Iterable[str]) -> list[str]:
    """Parts of names, longer than `backbone`, that find each norm: `backbone.norm`, `blocks.0.norm` for every stage."""
    found = {}
    for name in parameters:
        path = ['backbone', *name.split('.')]
        at = next((i for i, part in enumerate(path) if 'norm' in part), None)
        if at is None:
            continue
        start = at - 1
        while start > 0 and (path[start].isdigit() or len('.'.join(path[start:at])) + 5 <= len('backbone')):
            start -= 1
        found['.'.join([*path[start:at], path[at].rstrip('0123456789')])] = None
    return list(found)


def _fit_schedule(cfg: Config, task: str, ratio: float) -> None:
    """Floors of the learning rate shrink with it; a segmentor gets the warm-up that SGD went without."""
    schedulers = cfg.get('param_scheduler')
    if not schedulers:
        return
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    for scheduler in schedulers:
        if scheduler.get('eta_min'):
            scheduler['eta_min'] = float(f'{scheduler["eta_min"] * ratio:.3g}')
    if task == 'segmentation' and not any(
        type_name(scheduler) in ('LinearLR', 'ConstantLR') for scheduler in schedulers
    ):
        warmup = ConfigDict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=WARMUP_ITERS)
        cfg.param_scheduler = [warmup, *schedulers]
