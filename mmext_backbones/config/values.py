"""Checks the values that a run reads from a config itself: their kinds and ranges.

mmengine and the toolboxes find a wrong one late and far from its name. The values of components (a backbone's, a
transform's) are theirs to check; `errors` says which component refused.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmengine.config import Config

from ..utils.errors import UserError

__all__ = ['TASKS', 'check_config', 'check_needed']


class _Kind(NamedTuple):
    """What a value has to be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_integer(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


COMPONENT = _Kind('a dict with a type', lambda v: isinstance(v, Mapping) and _is_type(v.get('type')))
DICT = _Kind('a dict', lambda v: isinstance(v, Mapping))
COUNT = _Kind('an integer, 0 or more', lambda v: _is_integer(v, 0))
POSITIVE = _Kind('a positive integer', lambda v: _is_integer(v, 1))
# 57300.0 is found in mmdet's own configs
INTERVAL = _Kind('a positive whole number', lambda v: _is_number(v) and v == int(v) and _is_integer(int(v), 1))
NUMBER = _Kind('a number, 0 or more', lambda v: _is_number(v) and v >= 0)
BOOLEAN = _Kind('True or False', lambda v: isinstance(v, bool))
TEXT = _Kind('a text', lambda v: isinstance(v, str) and v != '')
COMPONENTS = _Kind('a list of dicts, each with a type', lambda v: _is_list(v) and all(map(COMPONENT.holds, v)))
SEED = _Kind('an integer from 0 to 4294967295', lambda v: _is_integer(v, 0) and v < 2**32)
OPTIM_WRAPPER = _Kind('a dict with an optimizer', lambda v: DICT.holds(v) and ('optimizer' in v or 'constructor' in v))
ONE_OR_MORE = _Kind('a dict with a type, or a list of them', lambda v: COMPONENT.holds(v) or COMPONENTS.holds(v))
HOOKS = _Kind(
    'a dict of dicts, each with a type',
    lambda v: DICT.holds(v) and all(each is None or COMPONENT.holds(each) for each in v.values()),
)
RANDOMNESS = _Kind(
    'a dict with seed, diff_rank_seed and deterministic alone',
    lambda v: DICT.holds(v) and set(v) <= {'seed', 'diff_rank_seed', 'deterministic'},
)
SCHEDULES = _Kind(
    'a dict with a type, or a list of them, or a dict of lists', lambda v: DICT.holds(v) or COMPONENTS.holds(v)
)
# Compose takes functions, and a data set of one's own may take pipelines by name
PIPELINE = _Kind(
    'a list of dicts, each with a type',
    lambda v: DICT.holds(v) or (_is_list(v) and all(COMPONENT.holds(each) or callable(each) for each in v)),
)
COLLATE = _Kind('a dict', lambda v: DICT.holds(v) or callable(v))
LOADER = _Kind('a dict with a dataset', lambda v: DICT.holds(v) and DICT.holds(v.get('dataset')))

# None is as good as no entry
KINDS: dict[str, _Kind] = {
    'model': COMPONENT,
    'model.backbone': COMPONENT,
    'model.data_preprocessor': DICT,
    'data_preprocessor': DICT,
    'default_scope': TEXT,
    'load_from': TEXT,
    'resume': BOOLEAN,
    'work_dir': TEXT,
    'launcher': TEXT,
    'log_level': _Kind('a level such as INFO', lambda v: isinstance(v, (str, int)) and not isinstance(v, bool)),
    'log_processor': DICT,
    'log_processor.window_size': POSITIVE,
    'log_processor.by_epoch': BOOLEAN,
    'env_cfg': DICT,
    'env_cfg.mp_cfg': DICT,
    'env_cfg.dist_cfg': DICT,
    'env_cfg.cudnn_benchmark': BOOLEAN,
    'visualizer': DICT,
    'vis_backends': COMPONENTS,
    'randomness': RANDOMNESS,
    'randomness.seed': SEED,
    'randomness.deterministic': BOOLEAN,
    'randomness.diff_rank_seed': BOOLEAN,
    'default_hooks': HOOKS,
    'custom_hooks': COMPONENTS,
    'optim_wrapper': OPTIM_WRAPPER,
    'optim_wrapper.optimizer': DICT,
    'optim_wrapper.optimizer.lr': NUMBER,
    'optim_wrapper.optimizer.weight_decay': NUMBER,
    'optim_wrapper.accumulative_counts': POSITIVE,
    'optim_wrapper.clip_grad': DICT,
    'optim_wrapper.clip_grad.max_norm': NUMBER,
    'param_scheduler': SCHEDULES,
    'auto_scale_lr': DICT,
    'auto_scale_lr.base_batch_size': POSITIVE,
    'train_cfg': DICT,
    'train_cfg.max_epochs': POSITIVE,
    'train_cfg.max_iters': POSITIVE,
    'train_cfg.val_interval': INTERVAL,
    'train_cfg.val_begin': COUNT,
    'train_cfg.by_epoch': BOOLEAN,
    'val_cfg': DICT,
    'test_cfg': DICT,
    'val_evaluator': ONE_OR_MORE,
    'test_evaluator': ONE_OR_MORE,
    'default_hooks.checkpoint.interval': _Kind('an integer, -1 for never', lambda v: _is_integer(v, -1)),
    'default_hooks.checkpoint.max_keep_ckpts': _Kind('an integer, -1 for all', lambda v: _is_integer(v, -1)),
    'default_hooks.logger.interval': POSITIVE,
}
for _split in ('train', 'val', 'test'):
    KINDS[f'{_split}_dataloader'] = LOADER
    KINDS[f'{_split}_dataloader.batch_size'] = POSITIVE
    KINDS[f'{_split}_dataloader.num_workers'] = COUNT
    KINDS[f'{_split}_dataloader.persistent_workers'] = BOOLEAN
    KINDS[f'{_split}_dataloader.pin_memory'] = BOOLEAN
    KINDS[f'{_split}_dataloader.drop_last'] = BOOLEAN
    KINDS[f'{_split}_dataloader.sampler'] = DICT
    KINDS[f'{_split}_dataloader.batch_sampler'] = DICT
    KINDS[f'{_split}_dataloader.collate_fn'] = COLLATE
    KINDS[f'{_split}_dataloader.dataset.pipeline'] = PIPELINE

# what a library's models do, by default_scope
TASKS = {'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}
NEEDED = ('train_dataloader', 'train_cfg', 'optim_wrapper')
TOGETHER = [(f'{split}_dataloader', f'{split}_cfg', f'{split}_evaluator') for split in ('val', 'test')]


def check_config(cfg: Config) -> None:
    """Looks at the kinds and ranges of the values that a run reads itself.

    Raises:
        UserError: naming the key, its value and what was expected.
    """
    for path, kind in KINDS.items():
        found, value = _get(cfg, path)
        if found and value is not None and not kind.holds(value):
            raise UserError(f'config key {path}={_short(value)}: expected {kind.words}.')


def check_needed(cfg: Config) -> None:
    """What a training cannot do without, and what has to come together.

    Raises:
        UserError: naming what is not there.
    """
    for key in NEEDED:
        if cfg.get(key) is None:
            raise UserError(f'the config has no {key}: without it there is nothing to train.')
    for names in TOGETHER:
        there = [name for name in names if cfg.get(name) is not None]
        if there and len(there) < len(names):
            lost = ', '.join(name for name in names if name not in there)
            raise UserError(f'the config has {" and ".join(there)} but no {lost}: all three, or none.')


def _get(cfg: Config, path: str) -> tuple[bool, Any]:
    """Whether the config has a dotted key, and its value."""
    node: Any = cfg
    for key in path.split('.'):
        if not isinstance(node, (Mapping, Config)) or key not in node:
            return False, None
        node = node[key]
    return True, node


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_type(value: Any) -> bool:
    """A name, or the class itself as Python-style configs have it."""
    return (isinstance(value, str) and value != '') or callable(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f'{text[:96]} ...'
