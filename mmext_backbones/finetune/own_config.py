"""Writes a config for a person's own data: the child of a recipe, with what follows from the data.

What follows from the number of images (epochs, warm-up, steps of the learning rate) is a rule of thumb of ours, stated
beside the numbers; the config is a person's to change.
"""

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..config.dialect import refuse_old_config
from ..config.editing import NOT_SET, ConfigEditor, set_num_classes, walk
from ..config.files import load_config
from ..config.writing import write_child
from ..datasets.shapes.config import num_cpus
from ..utils.errors import UserError
from ..utils.words import plural
from ..weights.fitting import WeightsError
from ..weights.loading import read
from .own_coco import OwnCoco

__all__ = ['DEFAULT', 'write_own_config']

DEFAULT = 'default'
STEPS = 2000  # of the optimizer, about; in at least MIN_EPOCHS, the recipes' 12, and at most MAX_EPOCHS
MIN_EPOCHS, MAX_EPOCHS = 12, 100
WARMUP = 500  # steps, as in the recipes; at most a tenth of the run, and none where that is a single step
LARGEST = (1333, 800)  # longer and shorter edge of an image, as for COCO
PALETTE = 80  # colours of mmdet's for COCO
BOXES_ONLY = {'MaskRCNN': 'FasterRCNN', 'CascadeRCNN': 'CascadeRCNN'}  # with masks -> the same without
FIT_HOOKS = ('NumClassCheckHook', 'EmptyCacheHook', 'MemoryProfilerHook')  # that no other schedule or pipeline spoils


def write_own_config(
    base: str,
    data: OwnCoco,
    out: str | Path,
    *,
    weights: str = DEFAULT,
    batch_size: int = 2,
    epochs: int | None = None,
    lr: float | None = None,
    size: int | None = None,
    num_workers: int | None = None,
) -> list[str]:
    """Writes a config that trains `base` on `data`.

    Args:
        base: A detector's config: a file, or a name like ``mmext_backbones::swin_t_maskrcnn_1x.py``.
        data: Of `read_own_coco`.
        out: The file; it must not exist. Its runs go to the folder `run` beside it.
        weights: Of the backbone: a file or address as in docs/weights.md, ``'none'``, or ``'default'`` for those that
            `base` names, if they can be had.
        batch_size: Images in a training batch.
        epochs: Length of the training; by the number of images when None.
        lr: Learning rate; that of `base` scaled to the batch when None.
        size: Longer edge of the images in the network, in pixels; by the size of the images when None.
        num_workers: Loader processes; by the number of cores when None.

    Returns:
        What a person should know, a line each. The same stands in the first lines of the config.

    Raises:
        UserError: if the config exists, or `base` cannot be trained on such data.
    """
    out = Path(out)
    for name, value in (('batch size', batch_size), ('number of epochs', epochs), ('size', size)):
        if value is not None and value < 1:
            raise UserError(f'a {name} of {value}: expected 1 or more')
    if out.exists():
        raise UserError(f'{out} is there already: train it, remove it, or name another folder.')
    old = load_config(base)
    refuse_old_config(old, base)
    cfg = deepcopy(old)
    _check_base(cfg, base)
    if num_workers is None:
        num_workers = max(0, min(4, num_cpus() - 2))
    editor = ConfigEditor(cfg)
    notes = [] if data.masks else _without_masks(editor, base)
    _set_data(editor, data, _scale(data, size), batch_size, num_workers)
    notes += _set_heads(editor, len(data.classes))
    notes += _set_schedule(editor, data, batch_size, epochs)
    notes += _set_rate(editor, batch_size, lr)
    notes += _set_weights(editor, weights)
    notes += _set_hooks(editor)
    editor.set('work_dir', str(out.parent / 'run'))  # mmengine writes a whole config of this name there
    about = [
        f'{Path(base.rpartition("::")[2]).name} for own data: {_told(data)}.',
        'Yours to read and to change. Paths count from the folder where the tools are started.',
        *notes,
    ]
    write_child(base, old, cfg, out, '\n# '.join(about))
    return notes


def _told(data: OwnCoco) -> str:
    kind = 'boxes and masks' if data.masks else 'boxes'
    return (
        f'{kind} of {plural(len(data.classes), "class", "classes")}, '
        f'{plural(data.train.num_images, "image")} for training, {data.val.num_images} for validation'
    )


def _check_base(cfg: Config, base: str) -> None:
    heads = [path for path, _ in walk(cfg.get('model') or {}) if path.endswith('semantic_head')]
    evaluators = cfg.get('val_evaluator') or []
    evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
    by_coco = bool(evaluators) and all(str(each.get('type')).endswith('CocoMetric') for each in evaluators)
    if cfg.get('default_scope') != 'mmdet' or heads or not by_coco:
        raise UserError(
            f'{base!r} is no config of an mmdet detector that is measured by CocoMetric on boxes or masks. '
            'Take one such as configs/swin_t_maskrcnn_1x.py or configs/sequencer_s_retinanet_1x.py.'
        )


def _without_masks(editor: ConfigEditor, base: str) -> list[str]:
    """Takes the mask branch out of a model of two stages."""
    heads = [
        path
        for path, _ in walk(editor.cfg.model, 'model')
        if re.search(r'\.(mask_(\w+_)?|panoptic_)head(\.\d+)?$', path)
    ]
    if not heads:
        return []
    kind = str(editor.cfg.model.type).rpartition('.')[2]
    if kind not in BOXES_ONLY or any(not path.startswith('model.roi_head.mask_head') for path in heads):
        raise UserError(
            f'{base!r}: {kind} learns masks, and the data has boxes alone. Take a detector of boxes, such as '
            'configs/sequencer_s_retinanet_1x.py, or one that becomes one, such as configs/swin_t_maskrcnn_1x.py.'
        )
    editor.set('model.type', BOXES_ONLY[kind])
    for key in ('mask_roi_extractor', 'mask_head'):
        editor.set(f'model.roi_head.{key}', None)
    return [f'without its mask branch (model.type is {BOXES_ONLY[kind]}): the data has boxes alone']


def _scale(data: OwnCoco, size: int | None) -> tuple[int, int]:
    """Longer and shorter edge that images are scaled into, which are no larger than COCO's."""
    if size is not None:
        return size, size
    edges = sorted(data.size, reverse=True)
    factor = min(1.0, *(most / edge for most, edge in zip(LARGEST, edges, strict=True)))
    return round(edges[0] * factor), round(edges[1] * factor)


def _set_data(editor: ConfigEditor, data: OwnCoco, scale: tuple[int, int], batch_size: int, num_workers: int) -> None:
    load = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': data.masks}
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipelines = {
        'train': [
            {'type': 'LoadImageFromFile'},
            load,
            {'type': 'RandomResize', 'scale': scale, 'ratio_range': (0.8, 1.25), 'keep_ratio': True},
            {'type': 'RandomFlip', 'prob': 0.5},
            {'type': 'PackDetInputs'},
        ],
        'val': [
            {'type': 'LoadImageFromFile'},
            {'type': 'Resize', 'scale': scale, 'keep_ratio': True},
            load,
            {'type': 'PackDetInputs', 'meta_keys': meta_keys},
        ],
    }
    metainfo: dict[str, Any] = {'classes': data.classes}
    if len(data.classes) > PALETTE:
        metainfo['palette'] = 'random'
    for split, part, name in (('train', data.train, 'train'), ('val', data.val, 'val'), ('test', data.val, 'val')):
        training = split == 'train'
        dataset = {
            'type': 'CocoDataset',
            'data_root': '',
            'ann_file': str(part.annotations),
            'data_prefix': {'img': f'{part.images}/'},
            'metainfo': metainfo,
            'pipeline': pipelines[name],
        }
        dataset |= {'filter_cfg': {'filter_empty_gt': True, 'min_size': 1}} if training else {'test_mode': True}
        before = editor.get(f'{split}_dataloader')
        loader = {
            'batch_size': batch_size if training else 1,
            'num_workers': num_workers,
            'persistent_workers': num_workers > 0,
            'sampler': {'type': 'DefaultSampler', 'shuffle': training},
            'dataset': dataset,
        }
        if training and isinstance(before, Mapping) and before.get('batch_sampler'):
            loader['batch_sampler'] = before['batch_sampler']
        editor.set(f'{split}_dataloader', loader)
        if not training:
            metric = ['bbox', 'segm'] if data.masks else 'bbox'
            editor.set(
                f'{split}_evaluator', {'type': 'CocoMetric', 'ann_file': str(part.annotations), 'metric': metric}
            )
            editor.set(f'{split}_cfg', {'type': f'{split.capitalize()}Loop'})
    for key in ('tta_model', 'tta_pipeline'):  # --tta without them: the image and its mirror image
        if editor.get(key) not in (NOT_SET, None):
            editor.set(key, None)


def _set_heads(editor: ConfigEditor, num_classes: int) -> list[str]:
    # a first stage tells objects from background, whatever the classes
    set_num_classes(editor, num_classes, skip=r'\.rpn_head(\.|$)')
    for path, node in walk(editor.cfg.model, 'model'):
        if 'num_things_classes' in node:
            editor.set(f'{path}.num_things_classes', num_classes)
    if editor.get('model.data_preprocessor.batch_augments') not in (NOT_SET, None):
        editor.set('model.data_preprocessor.batch_augments', None)
        return ['without data_preprocessor.batch_augments, which expects the image size of the recipe']
    return []


def _set_schedule(editor: ConfigEditor, data: OwnCoco, batch_size: int, epochs: int | None) -> list[str]:
    images = data.train.num_images - data.train.num_empty
    steps = math.ceil(images / batch_size)
    if epochs is None:
        epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, round(STEPS / steps)))
    every = max(1, epochs // 10)
    warmup = min(WARMUP, steps * epochs // 10)
    if warmup < 2:  # of a single step mmengine's LinearLR would never end
        warmup = 0
    # after 8 and 11 epochs of 12, as the recipes
    milestones = sorted({round(epochs * part) for part in (8 / 12, 11 / 12)} & set(range(1, epochs)))
    editor.set('train_cfg', {'type': 'EpochBasedTrainLoop', 'max_epochs': epochs, 'val_interval': every})
    warming = {'type': 'LinearLR', 'start_factor': 0.001, 'by_epoch': False, 'begin': 0, 'end': warmup}
    steps_down = {'type': 'MultiStepLR', 'by_epoch': True, 'begin': 0, 'end': epochs, 'milestones': milestones}
    editor.set('param_scheduler', [warming, steps_down] if warmup else [steps_down])
    editor.set(
        'default_hooks.checkpoint',
        {
            'type': 'CheckpointHook',
            'interval': every,
            'max_keep_ckpts': 2,
            'save_best': 'coco/bbox_mAP',
            'rule': 'greater',
        },
    )
    editor.set('default_hooks.logger', {'type': 'LoggerHook', 'interval': max(1, min(50, steps // 2))})
    editor.set('log_processor', {'type': 'LogProcessor', 'window_size': 50, 'by_epoch': True})
    for key in ('load_from', 'resume'):
        if editor.get(key) not in (NOT_SET, None, False):
            editor.set(key, None if key == 'load_from' else False)
    warmed = f'the warm-up takes {warmup} of them' if warmup else 'too few for a warm-up'
    return [f'{plural(epochs, "epoch")} of {plural(steps, "step")}, {steps * epochs} in all; {warmed}']


def _set_rate(editor: ConfigEditor, batch_size: int, lr: float | None) -> list[str]:
    base_batch = editor.get('auto_scale_lr.base_batch_size')
    base_lr = editor.get('optim_wrapper.optimizer.lr')
    if lr is None and isinstance(base_batch, int) and isinstance(base_lr, float):
        lr = base_lr * batch_size / base_batch
        note = f'learning rate {lr:g}: {base_lr:g} for {plural(base_batch, "image")}, in proportion for {batch_size}'
    else:
        note = f'learning rate {lr:g}, as asked for' if lr is not None else 'learning rate as in the recipe'
    if lr is not None:
        editor.set('optim_wrapper.optimizer.lr', lr)
    editor.set('auto_scale_lr', {'enable': False, 'base_batch_size': batch_size})
    return [note]


def _set_weights(editor: ConfigEditor, weights: str) -> list[str]:
    init = editor.get('model.backbone.init_cfg')
    named = init.get('checkpoint') if isinstance(init, Mapping) and init.get('type') == 'Pretrained' else None
    random_start = 'THE BACKBONE STARTS FROM RANDOM WEIGHTS, which need far more images and epochs'
    if weights == 'none':
        editor.set('model.backbone.init_cfg', None)
        return [f'{random_start}, as asked for']
    if weights != DEFAULT:
        try:
            read(weights)
        except (WeightsError, FileNotFoundError, ImportError) as error:
            raise UserError(f'--weights {weights}: {error}') from error
        editor.set('model.backbone.init_cfg', {'type': 'Pretrained', 'checkpoint': weights})
        return [f'backbone from {weights}']
    if named is None:
        return [f'{random_start}: the recipe names none (docs/weights.md says where some are; --weights FILE)']
    try:
        read(named)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        editor.set('model.backbone.init_cfg', None)
        reason = ' '.join(str(error).split())
        return [f'{random_start}: {reason}. Fetch the file elsewhere and name it (--weights FILE)']
    return [f'backbone from {named}']


def _set_hooks(editor: ConfigEditor) -> list[str]:
    """Leaves out hooks that belong to the recipe's own schedule or pipeline (averages of weights, switches)."""
    hooks = editor.get('custom_hooks')
    hooks = list(hooks) if isinstance(hooks, (list, tuple)) else []
    kept = [hook for hook in hooks if str(hook['type']).endswith(FIT_HOOKS)]
    if len(kept) == len(hooks):
        return []
    editor.set('custom_hooks', kept)
    return [f"without the recipe's {', '.join(str(hook['type']) for hook in hooks if hook not in kept)}"]
