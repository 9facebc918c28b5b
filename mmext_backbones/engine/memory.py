"""When memory runs out: the settings of this run that save some, their values now, and what to try."""

import contextlib
import inspect
import os
import traceback
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.registry import MODELS as ALL_MODELS
from mmengine.runner import ValLoop

from ..config.editing import walk
from ..registry import MODELS
from ..utils.errors import UserError
from ..utils.explain import ran_out

__all__ = ['explain_out_of_memory', 'settings']

SIZES = ('scale', 'scales', 'crop_size', 'img_scale', 'size')
SHARED_MEMORY = '/dev/shm'
WHAT = {
    'gpu': 'the memory of the GPU ran out',
    'host': 'the memory of this machine ran out',
    'shared': f'the shared memory ({SHARED_MEMORY}) that loader workers hand over their batches in ran out',
}


@contextlib.contextmanager
def explain_out_of_memory(cfg: Config, split: str) -> Iterator[None]:
    """An error of memory becomes a message with the settings of this run.

    Args:
        cfg: The config of the run.
        split: ``'train'`` or ``'test'``.

    Raises:
        UserError: instead of such an error.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        found = ran_out(error)
        if found is None:
            raise
        kind, reason = found
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if split == 'train' and any(isinstance(frame.f_locals.get('self'), ValLoop) for frame in frames):
            split = 'val'
        when = {'train': 'in the training', 'val': 'in the validation', 'test': 'in the test'}[split]
        rows = settings(cfg, kind, split)
        width = max((len(now) for now, _ in rows), default=0)
        lines = [f'{WHAT[kind]} {when}: {reason[:300]}']
        lines += ['What can be lowered, as this run has it, the first lines first (--cfg-options KEY=VALUE):'] * bool(
            rows
        )
        lines += [f'  {now:{width}}  -> {then}' for now, then in rows]
        raise UserError('\n'.join(lines)) from error


def settings(cfg: Config, kind: str, split: str) -> list[tuple[str, str]]:
    """What may be lowered: (the setting with its value now, what to make of it).

    Args:
        cfg: The config of the run.
        kind: ``'gpu'``, ``'host'`` or ``'shared'``.
        split: ``'train'``, ``'val'`` or ``'test'``.
    """
    loading, model = _loading(cfg, kind, split), _model(cfg, kind) if split == 'train' else []
    if kind == 'shared':
        return [*loading, *_batch(cfg, split)]
    sizes = _sizes(cfg, split)
    return [*_batch(cfg, split), *model, *sizes, *loading]


def _batch(cfg: Config, split: str) -> list[tuple[str, str]]:
    loader = cfg.get(f'{split}_dataloader') or {}
    size = loader.get('batch_size')
    if not isinstance(size, int):
        return []
    now = f'{split}_dataloader.batch_size={size}'
    if size < 2:
        return [(now, 'nothing: it is the least')]
    factor = next(n for n in range(2, size + 1) if size % n == 0)
    then = f'{size // factor}'
    if split == 'train':
        counts = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
        images = size * counts * get_world_size()
        then += (
            f' with optim_wrapper.accumulative_counts={counts * factor} (now {counts}): {images} images a step as now'
        )
        iters = (cfg.get('train_cfg') or {}).get('max_iters')
        if isinstance(iters, int):
            then += f', for which train_cfg.max_iters={iters * factor} (now {iters}) and the schedule count batches'
    return [(now, then)]


def _model(cfg: Config, kind: str) -> list[tuple[str, str]]:
    rows = []
    backbones = [(path, node) for path, node in walk(cfg.model, 'model') if path.endswith('backbone')]
    for path, node in backbones:
        if kind == 'gpu' and _takes(node.get('type'), 'recompute'):
            value = node.get('recompute', 'auto')
            then = 'nothing: it is on' if value is True else 'True: norms and GELUs are computed again instead of kept'
            rows.append((f'{path}.recompute={value}', then))
        if _takes(node.get('type'), 'with_cp'):
            on = bool(node.get('with_cp'))
            then = 'nothing: it is on' if on else 'True: activations are computed again instead of kept, a third slower'
            rows.append((f'{path}.with_cp={on}', then))
    wrapper = str((cfg.get('optim_wrapper') or {}).get('type', 'OptimWrapper'))
    if kind == 'gpu' and wrapper.endswith('AmpOptimWrapper'):
        rows.append(('--amp', 'nothing: it is on'))
    elif kind == 'gpu':
        rows.append(('no --amp', '--amp: mixed precision, about half of the activations'))
    for path, node in backbones:
        if str(node.get('type')).startswith(f'{MODELS.scope}.') and not wrapper.endswith('AmpOptimWrapper'):
            dtype = node.get('autocast_dtype')
            rows.append(
                (f'{path}.autocast_dtype={dtype}', 'nothing: it is on')
                if dtype
                else ('no --bf16', '--bf16: half of what the backbone keeps')
            )
    return rows


def _takes(kind: Any, key: str) -> bool:
    """Whether a component of the config takes a key; no if it is not known."""
    try:
        return key in inspect.signature(ALL_MODELS.get(kind)).parameters
    except Exception:  # no type, or one whose library is not there
        return False


def _sizes(cfg: Config, split: str) -> list[tuple[str, str]]:
    """Sizes of images in the pipeline."""
    rows = []
    for path, node in walk(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
        for key in SIZES:
            value = node.get(key)
            if '.pipeline.' in path and isinstance(value, (int, tuple, list)) and value:
                rows.append((f'{path}.{key}={_short(value)}', 'smaller images'))
    return rows[:4]


def _short(value: Any) -> str:
    text = str(value).replace(' ', '')
    return text if len(text) < 60 else f'{text[:56]}...'


def _loading(cfg: Config, kind: str, split: str) -> list[tuple[str, str]]:
    loader = cfg.get(f'{split}_dataloader') or {}
    workers = loader.get('num_workers', 0)
    if kind == 'gpu' or not isinstance(workers, int):
        return []
    rows = []
    if kind == 'shared':
        rows.append((f'{SHARED_MEMORY} of {_size_of(SHARED_MEMORY)}', 'more: docker run --shm-size=8g, or --ipc=host'))
    if workers:
        then = f'{workers // 2}' if workers > 1 else '0'
        then += '' if kind == 'shared' else ': each holds batches and a copy of what the data set keeps'
        if workers <= 1:
            then += f', with {split}_dataloader.persistent_workers=False'
        rows.append((f'{split}_dataloader.num_workers={workers}', then))
    elif kind == 'host':
        rows.append((f'{split}_dataloader.num_workers=0', 'nothing: it is the least'))
    return rows


def _size_of(folder: str) -> str:
    try:
        stat = os.statvfs(folder)
    except OSError:
        return 'unknown size'
    return f'{stat.f_frsize * stat.f_blocks / 2**20:.0f} MiB'
