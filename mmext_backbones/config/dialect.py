"""Recognises the keys of mmdet 2, mmsegmentation 0 and mmclassification, which mmengine passes over without a word."""

import re
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..utils.errors import UserError
from .editing import plain, walk

__all__ = ['old_keys', 'refuse_old_config']

# what a key was called, and where mmengine has it
OLD = {
    'data': 'train_dataloader, val_dataloader, test_dataloader',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config': 'optim_wrapper.clip_grad',
    'fp16': "optim_wrapper.type='AmpOptimWrapper', or --amp",
    'lr_config': 'param_scheduler',
    'momentum_config': 'param_scheduler',
    'runner': 'train_cfg',
    'total_epochs': 'train_cfg.max_epochs',
    'evaluation': 'train_cfg.val_interval and val_evaluator',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger and visualizer.vis_backends',
    'workflow': 'train_cfg.val_interval',
    'dist_params': 'env_cfg.dist_cfg',
    'cudnn_benchmark': 'env_cfg.cudnn_benchmark',
    'opencv_num_threads': 'env_cfg.mp_cfg.opencv_num_threads',
    'mp_start_method': 'env_cfg.mp_cfg.mp_start_method',
    'resume_from': 'resume and load_from, or --resume',
    'auto_resume': 'resume, or --resume',
    'seed': 'randomness.seed, or --seed',
    'deterministic': 'randomness.deterministic',
    'img_norm_cfg': 'model.data_preprocessor',
    'gpu_ids': '--launcher',
}
GUIDE = 'docs/migration.md has them key by key.'


def refuse_old_config(cfg: Config, name: str) -> None:
    """Refuses a config that is written for mmdet 2, mmsegmentation 0 or mmclassification as a whole.

    Args:
        cfg: As it was read.
        name: Its path.

    Raises:
        UserError: naming its keys, and the page that translates them.
    """
    new = any(cfg.get(key) is not None for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'))
    if new or not _is_old_data(cfg.get('data')):
        return
    found = [key for key in OLD if key in cfg]
    raise UserError(
        f'config {name!r} is one of mmdet 2, mmsegmentation 0 or mmclassification ({", ".join(found)}), which mmengine '
        f'does not read.\nTake a recipe of ours and change what is yours, or translate it: {GUIDE}'
    )


def old_keys(cfg: Config) -> list[tuple[str, str]]:
    """Keys of the old dialect that nothing reads in a config of mmengine, each with its place in the new one.

    A key that another one is made of is a variable and none of them: ``optim_wrapper=dict(optimizer=optimizer)``,
    ``data_preprocessor=dict(**img_norm_cfg)``. Bases leave such variables to their children.
    """
    rest = {key: value for key, value in cfg.items() if key not in OLD}
    values = [plain(value) for _, node in walk(rest) for value in node.values()]
    return [
        (key, place)
        for key, place in OLD.items()
        if _is_set(cfg.get(key)) and plain(cfg[key]) not in values and not _is_variable(key, cfg, values)
    ]


def _is_variable(key: str, cfg: Config, values: list[Any]) -> bool:
    """Whether a key is one of those that configs of mmengine have, too, to make others of."""
    value = plain(cfg[key])
    if key == 'data':
        return not _is_old_data(value)
    if key not in ('optimizer', 'img_norm_cfg'):
        return False
    if isinstance(value, dict) and all(each in values for each in value.values()):  # dict(**img_norm_cfg)
        return True
    file = Path(cfg.filename or '')
    return file.is_file() and not re.search(rf'^{key}\s*=', file.read_text(encoding='utf-8'), re.MULTILINE)


def _is_old_data(data: Any) -> bool:
    """Whether the key `data` is that of mmdet 2, and no variable of that name."""
    keys = {'samples_per_gpu', 'workers_per_gpu', 'train', 'val', 'test', 'train_dataloader'}
    return isinstance(data, dict) and bool(keys & set(data))


def _is_set(value: Any) -> bool:
    """Whether a key asks for something; ``workflow=[('train', 1)]`` is what is done anyway."""
    return value not in (None, False, {}, [], [('train', 1)], [['train', 1]], ())
