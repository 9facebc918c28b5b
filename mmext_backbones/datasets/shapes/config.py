"""Rewrites any detection, segmentation or classification config to run on the Shapes data.

`use_shapes` edits an mmengine config in place and answers with a list of `Change`: every value that is no longer
what the config said. The model keeps its structure; what changes is the data, the numbers that follow from it
(classes, image size), the numbers that only make sense on large images (RoI sampling, queries), the schedule, and
pretrained weights, which would need the network.
"""

import os
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from ...config.editing import NOT_SET, Change, ConfigEditor, plain, set_num_classes, shorten, type_name, walk
from ...config.values import TASKS
from .files import SEMANTIC_CLASSES, SEMANTIC_PALETTE
from .scenes import CLASSES, PALETTE

__all__ = ['num_cpus', 'shapes_task', 'use_shapes']

# The schedule, for a full-size backbone from scratch on two CPU cores.
ITERS = 310
BATCH_SIZE = 4
LR = 2.5e-4
# of the fully connected layers on RoI features: with 12544 inputs each, an ordinary step of Adam moves them too far
SHARED_FC_LR_MULT = 0.06
WARMUP_ITERS = 20
LOG_INTERVAL = 10

# Upper bounds for numbers that were chosen for images of a megapixel. Key: the end of the config path.
ROI_LIMITS = {
    'rpn.sampler.num': 128,
    'rpn_proposal.nms_pre': 400,
    'rpn_proposal.max_per_img': 200,
    'rcnn.sampler.num': 48,
    'test_cfg.rpn.nms_pre': 400,
    'test_cfg.rpn.max_per_img': 200,
    'test_cfg.rcnn.max_per_img': 30,
}
POS_FRACTION = 0.5  # of the sampled RoIs, at least: few objects and few iterations
MASK_SIZE = 14  # edge of the masks that are learned, in cells; COCO's objects have 28
MAX_QUERIES = 100

BESIDE_BOXES = 'roi_head.semantic_head'  # the branch of hybrid task cascades that learns semantic maps
_VIDEO = ('tracker', 'track_head', 'reid', 'motion')
_KEPT_HOOKS = ('NumClassCheckHook', 'EmptyCacheHook', 'MemoryProfilerHook', 'ProfilerHook')


def use_shapes(
    cfg: Config,
    data_dir: str | os.PathLike,
    *,
    size: int = 128,
    iters: int = ITERS,
    batch_size: int = BATCH_SIZE,
    num_workers: int | None = None,
    editor: ConfigEditor | None = None,
) -> list[Change]:
    """Rewrites a config, in place, to train and test on a Shapes data set.

    Args:
        cfg: A config of mmdet, mmseg or mmpretrain.
        data_dir: A folder made by `make_shapes`.
        size: Edge of the network's input in pixels.
        iters: Training iterations.
        batch_size: Images in a training batch.
        num_workers: Loader processes. When None: what is left of the cores after two for the model, at most two.
        editor: The editor of `cfg`, which is told of the changes too.

    Returns:
        The changes made here, in the order in which they were made.

    Raises:
        ValueError: if the config cannot run on Shapes (video, panoptic, text, ...) or an argument is out of range.
    """
    for name, value in (('size', size), ('iters', iters), ('batch_size', batch_size)):
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f'{name}={value!r}: expected a positive integer')
    if num_workers is None:
        num_workers = min(2, max(0, num_cpus() - 2))
    task = shapes_task(cfg)
    editor = editor or ConfigEditor(cfg)
    changes_before = len(editor.changes)
    root = Path(data_dir)

    _drop_weights(editor)
    if task == 'detection':
        _detection(editor, root, size, batch_size, num_workers)
    elif task == 'segmentation':
        _segmentation(editor, root, size, batch_size, num_workers)
    else:
        _classification(editor, root, size, batch_size, num_workers)
    for path, node in walk(cfg.model, 'model'):  # stochastic depth only slows a run this short
        if isinstance(node.get('drop_path_rate'), float) and node['drop_path_rate'] > 0:
            editor.set(f'{path}.drop_path_rate', 0.0)
    _schedule(editor, iters)
    _hooks(editor, iters)
    return editor.changes[changes_before:]


def shapes_task(cfg: Config) -> str:
    """``'detection'``, ``'segmentation'`` or ``'classification'``.

    Raises:
        ValueError: if the config is none of these, or needs annotations that Shapes does not have.
    """
    scope = cfg.get('default_scope')
    if scope not in TASKS:
        raise ValueError(f'default_scope={scope!r}: expected one of {sorted(TASKS)} to run on the Shapes data')
    model = cfg.get('model')
    if not isinstance(model, dict) or 'type' not in model:
        raise ValueError(f'model={shorten(model)}: expected a dict with a type')
    reason = _why_not(model, TASKS[scope])
    if reason:
        raise ValueError(f'model.type={model["type"]!r}: cannot run on the Shapes data, {reason}')
    return TASKS[scope]


def num_cpus() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


# --------------------------------------------------------------------------------------------------------------------
# What cannot be done


def _why_not(model: dict, task: str) -> str | None:
    """Why a model cannot run on Shapes; None if it can."""
    name = str(model['type']).rpartition('.')[2]
    nodes = dict(walk(model))
    if any(key in model for key in _VIDEO) or re.search('Video|MaskTrack|ReID', name):
        return 'it works on video and the data are single pictures'
    if any(re.search(r'3D|Rotated|Pose|Keypoint', str(node.get('type', ''))) for node in nodes.values()):
        return 'it needs 3-D, rotated or keypoint annotations and the data have upright boxes'
    if any('num_stuff_classes' in node and node['num_stuff_classes'] for node in nodes.values()):
        return 'it needs panoptic annotations (an instance or a semantic form of the same model can run)'
    if name == 'PanopticFPN' or any(path.endswith('semantic_head') for path in nodes if path != BESIDE_BOXES):
        return 'it needs panoptic annotations'
    if any(re.search(r'language_model|text_encoder', path) for path in nodes):
        return 'it needs text prompts'
    if 'semi_train_cfg' in model:
        return 'it learns from unlabelled pictures'
    if 'teacher_config' in model:
        return 'it learns from a trained teacher'
    if name == 'FastRCNN':
        return 'it needs proposals computed beforehand'
    if task == 'segmentation' and 'Depth' in name:
        return 'it estimates depth and the data have none'
    if task == 'classification':
        if not name.endswith('Classifier'):
            return 'only image classifiers can'
        if any('MultiLabel' in str(node.get('type', '')) for node in nodes.values()):
            return 'it needs several labels a picture'
    return None


# --------------------------------------------------------------------------------------------------------------------
# The three tasks


def _detection(editor: ConfigEditor, root: Path, size: int, batch_size: int, num_workers: int) -> None:
    metrics = _box_metrics(editor.cfg)
    with_mask = 'segm' in metrics
    load = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': with_mask}
    with_seg = editor.get(f'model.{BESIDE_BOXES}') not in (NOT_SET, None)
    semantic = {'with_seg': True} if with_seg else {}
    resize = {'type': 'Resize', 'scale': (size, size), 'keep_ratio': True}
    meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
    pipelines = {
        'train': [
            {'type': 'LoadImageFromFile'},
            {**load, **semantic},
            resize,
            {'type': 'RandomFlip', 'prob': 0.5},
            {'type': 'PackDetInputs'},
        ],
        'val': [{'type': 'LoadImageFromFile'}, resize, load, {'type': 'PackDetInputs', 'meta_keys': meta_keys}],
    }

    def dataset(split: str) -> dict:
        return {
            'type': 'CocoDataset',
            'data_root': str(root),
            'ann_file': f'annotations/instances_{split}.json',
            'data_prefix': {'img': split, **({'seg': f'semantic/{split}'} if with_seg else {})},
            'metainfo': {'classes': CLASSES, 'palette': list(PALETTE)},
            'test_mode': split == 'val',
            'pipeline': pipelines[split],
        }

    ann_file = str(root / 'annotations' / 'instances_val.json')
    _data(editor, dataset, {'type': 'CocoMetric', 'ann_file': ann_file, 'metric': metrics}, batch_size, num_workers)
    if 'tta_pipeline' in editor.cfg:
        pack = {'type': 'PackDetInputs', 'meta_keys': (*meta_keys, 'flip', 'flip_direction')}
        editor.set('tta_pipeline', _views(size, load, pack))

    # a first stage tells objects from background, whatever the classes
    set_num_classes(editor, len(CLASSES), skip=r'\.rpn_head(\.|$)|\.semantic_head(\.|$)')
    if with_seg:  # labels as they stand in the files: 0 is unlabelled
        editor.set(f'model.{BESIDE_BOXES}.num_classes', len(SEMANTIC_CLASSES) + 1)
    for path, node in walk(editor.cfg.model, 'model'):
        if 'num_things_classes' in node:
            editor.set(f'{path}.num_things_classes', len(CLASSES))
    _set_image_size(editor, size)
    editor.drop('model.data_preprocessor.batch_augments')
    _limit(editor, 'model.num_queries', MAX_QUERIES)
    for path, node in walk(editor.cfg.model, 'model'):
        for key in node:
            full = f'{path}.{key}'
            for end, limit in ROI_LIMITS.items():
                if re.sub(r'\.\d+(?=\.)', '', full).endswith(f'.{end}'):  # cascades: rcnn.0.sampler.num
                    _limit(editor, full, limit)
    _rois(editor)


def _rois(editor: ConfigEditor) -> None:
    """Sampling of regions for objects of tens of pixels, where a config expects hundreds."""
    heads = [node for path, node in walk(editor.cfg.model) if re.search(r'mask_head(\.\d+)?$', path)]
    any_size = bool(heads) and all(node.get('type') == 'FCNMaskHead' for node in heads)  # convolutions only
    for path, node in walk(editor.cfg.model, 'model'):
        if re.search(r'rcnn(\.\d+)?\.sampler$', path) and node.get('pos_fraction', POS_FRACTION) < POS_FRACTION:
            editor.set(f'{path}.pos_fraction', POS_FRACTION)
        if path.endswith('roi_layer') and node.get('sampling_ratio') == 0:  # 0: a sample a cell of the map
            editor.set(f'{path}.sampling_ratio', 1)
        if any_size and re.search(r'rcnn(\.\d+)?$', path):
            _limit(editor, f'{path}.mask_size', MASK_SIZE)
        if any_size and re.search(r'mask_roi_extractor(\.\d+)?\.roi_layer$', path):
            _limit(editor, f'{path}.output_size', MASK_SIZE // 2)


def _segmentation(editor: ConfigEditor, root: Path, size: int, batch_size: int, num_workers: int) -> None:
    resize = {'type': 'Resize', 'scale': (size, size), 'keep_ratio': True}
    pipelines = {
        'train': [
            {'type': 'LoadImageFromFile'},
            {'type': 'LoadAnnotations'},
            resize,
            {'type': 'RandomFlip', 'prob': 0.5},
            {'type': 'PackSegInputs'},
        ],
        'val': [{'type': 'LoadImageFromFile'}, resize, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}],
    }

    def dataset(split: str) -> dict:
        return {
            'type': 'BaseSegDataset',
            'data_root': str(root),
            'data_prefix': {'img_path': split, 'seg_map_path': f'semantic/{split}'},
            'img_suffix': '.png',
            'seg_map_suffix': '.png',
            'metainfo': {'classes': SEMANTIC_CLASSES, 'palette': list(SEMANTIC_PALETTE)},
            'reduce_zero_label': True,
            'pipeline': pipelines[split],
        }

    _data(editor, dataset, {'type': 'IoUMetric', 'iou_metrics': ['mIoU']}, batch_size, num_workers)
    if 'tta_pipeline' in editor.cfg:
        editor.set('tta_pipeline', _views(size, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}))

    # an STDC head of two classes looks for edges, whatever the classes
    edges = '|'.join(
        re.escape(path) for path, node in walk(editor.cfg.model, 'model') if node.get('type') == 'STDCHead'
    )
    set_num_classes(editor, len(SEMANTIC_CLASSES), skip=rf'^({edges})(\.|$)' if edges else None)
    _set_image_size(editor, size)
    for path in ('data_preprocessor', 'model.data_preprocessor'):
        if editor.get(path) is not NOT_SET:
            editor.drop(f'{path}.size_divisor')
            editor.drop(f'{path}.test_cfg')
            editor.set(f'{path}.size', (size, size))
    if editor.get('model.test_cfg.mode') == 'slide':
        editor.set('model.test_cfg', {'mode': 'whole'})


def _classification(editor: ConfigEditor, root: Path, size: int, batch_size: int, num_workers: int) -> None:
    # many classifiers are built for one size and refuse any other
    fixed = editor.get('model.backbone.img_size')
    edge = size if fixed is NOT_SET else fixed if isinstance(fixed, int) else int(fixed[0])
    resize = {'type': 'Resize', 'scale': (edge, edge)}
    pipelines = {
        'train': [{'type': 'LoadImageFromFile'}, resize, {'type': 'RandomFlip', 'prob': 0.5}, {'type': 'PackInputs'}],
        'val': [{'type': 'LoadImageFromFile'}, resize, {'type': 'PackInputs'}],
    }

    def dataset(split: str) -> dict:
        return {
            'type': 'CustomDataset',
            'data_root': str(root),
            'data_prefix': f'classes/{split}',
            'classes': sorted(CLASSES),  # mmpretrain numbers the folders in this order, whatever is said here
            'pipeline': pipelines[split],
        }

    _data(editor, dataset, {'type': 'Accuracy', 'topk': (1,)}, batch_size, num_workers)
    editor.drop('tta_pipeline')
    set_num_classes(editor, len(CLASSES))
    if isinstance(editor.get('model.head.topk'), (list, tuple)):
        editor.set('model.head.topk', (1,))
    if editor.get('model.train_cfg.augments') not in (NOT_SET, None):
        editor.drop('model.train_cfg.augments')  # mixing pictures pays off over many epochs only


def _box_metrics(cfg: Config) -> list[str]:
    """What to measure: what the config measures, as far as COCO's metric knows it."""
    evaluators = cfg.get('val_evaluator') or {}
    known = []
    for _, node in walk(evaluators):
        metric = node.get('metric')
        known += [metric] if isinstance(metric, str) else list(metric or [])
    has_masks = any(path.endswith(('mask_head', 'mask_feature_head')) for path, _ in walk(cfg.model))
    has_masks = has_masks or any(node.get('with_mask') for _, node in walk(cfg.get('train_dataloader') or {}))
    if 'proposal_fast' in known or 'proposal' in known:
        return ['proposal_fast']
    if 'segm' in known and 'bbox' not in known:
        return ['segm']
    return ['bbox', 'segm'] if 'segm' in known or has_masks else ['bbox']


# --------------------------------------------------------------------------------------------------------------------
# Parts the tasks share


def _data(editor: ConfigEditor, dataset: Any, evaluator: dict, batch_size: int, num_workers: int) -> None:
    """Loaders and evaluators: whatever stood there, wrappers included, is replaced."""
    for split, source in (('train', 'train'), ('val', 'val'), ('test', 'val')):
        new = dataset(source)
        path = f'{split}_dataloader'
        # said in parts, so that the pipeline is a line of its own
        old = _innermost(editor.get(f'{path}.dataset'))
        loader = {
            'batch_size': batch_size if split == 'train' else 1,
            'num_workers': num_workers,
            'persistent_workers': num_workers > 0,
            'sampler': {
                'type': 'InfiniteSampler' if split == 'train' else 'DefaultSampler',
                'shuffle': split == 'train',
            },
            'dataset': new,
        }
        before = editor.get(path)
        before = before if isinstance(before, dict) else {}
        editor.cfg[path] = ConfigDict(loader)
        for key in ('batch_size', 'num_workers', 'sampler', 'batch_sampler'):
            _note(editor, f'{path}.{key}', before.get(key, NOT_SET), loader.get(key, NOT_SET))
        _note(editor, f'{path}.dataset', before.get('dataset', NOT_SET), new)
        _note(editor, f'{path}.dataset.pipeline', old.get('pipeline', NOT_SET), new['pipeline'])
        if split != 'train':
            editor.set(f'{split}_evaluator', evaluator)
            if editor.get(f'{split}_cfg') in (NOT_SET, None):
                editor.set(f'{split}_cfg', {'type': f'{split.capitalize()}Loop'})


def _views(size: int, load: dict, pack: dict) -> list[dict]:
    """The pipeline of test-time augmentation: two scales, each also flipped, the truth left as it is."""
    views = [
        [{'type': 'Resize', 'scale': (edge, edge), 'keep_ratio': True} for edge in (size, size * 5 // 4)],
        [{'type': 'RandomFlip', 'prob': prob, 'direction': 'horizontal'} for prob in (0.0, 1.0)],
        [load],
        [pack],
    ]
    return [{'type': 'LoadImageFromFile'}, {'type': 'TestTimeAug', 'transforms': views}]


def _note(editor: ConfigEditor, path: str, before: Any, after: Any) -> None:
    if plain(before) != plain(after):
        editor.changes.append(Change(path, before, after))


def _innermost(dataset: Any) -> dict:
    """The first data set inside wrappers, with the pipeline that is applied last."""
    if not isinstance(dataset, dict):
        return {}
    pipeline = dataset.get('pipeline')
    inner = dataset.get('dataset') or (dataset.get('datasets') or [None])[0]
    if inner is None:
        return dataset
    found = dict(_innermost(inner))
    if pipeline is not None:
        found['pipeline'] = pipeline
    return found


def _set_image_size(editor: ConfigEditor, size: int) -> None:
    """`img_size` of backbones built for one input size."""
    for path, node in walk(editor.cfg.model, 'model'):
        old = node.get('img_size')
        if isinstance(old, int):
            editor.set(f'{path}.img_size', size)
        elif isinstance(old, (list, tuple)):
            editor.set(f'{path}.img_size', (size, size))


def _limit(editor: ConfigEditor, path: str, limit: int) -> None:
    value = editor.get(path)
    if isinstance(value, int) and value > limit:
        editor.set(path, limit)


def _drop_weights(editor: ConfigEditor) -> None:
    """Weights that would be fetched, and what only makes sense with them: frozen layers, fixed norms."""
    dropped = False
    for path, node in walk(editor.cfg.model, 'model'):
        init = node.get('init_cfg')
        if isinstance(init, dict) and init.get('type') == 'Pretrained' and _is_remote(init.get('checkpoint')):
            editor.set(f'{path}.init_cfg', None)
            dropped = True
        if isinstance(node.get('pretrained'), str) and _is_remote(node['pretrained']):
            editor.set(f'{path}.pretrained', None)
            dropped = True
        elif node.get('pretrained') is True:
            editor.set(f'{path}.pretrained', False)
            dropped = True
    if _is_remote(editor.get('load_from')):
        editor.set('load_from', None)
        dropped = True
    if not dropped:
        return
    for path, node in walk(editor.cfg.model, 'model'):
        if isinstance(node.get('frozen_stages'), int) and node['frozen_stages'] >= 0:
            editor.set(f'{path}.frozen_stages', -1)
        if node.get('norm_eval') is True:
            editor.set(f'{path}.norm_eval', False)
        if node.get('requires_grad') is False and 'type' in node:
            editor.set(f'{path}.requires_grad', True)


def _is_remote(checkpoint: Any) -> bool:
    """True for an address; a file of the user's own is kept."""
    return isinstance(checkpoint, str) and '://' in checkpoint and not checkpoint.startswith('file://')


def _schedule(editor: ConfigEditor, iters: int) -> None:
    """A short run of iterations with AdamW, a warm-up and a cosine decay."""
    every = max(1, -(-iters // 2))
    warmup = min(WARMUP_ITERS, iters // 4)
    if warmup < 2:  # of a single step mmengine's LinearLR would never end
        warmup = 0
    editor.set('train_cfg', {'type': 'IterBasedTrainLoop', 'max_iters': iters, 'val_interval': every})
    warming = {'type': 'LinearLR', 'start_factor': 0.01, 'by_epoch': False, 'begin': 0, 'end': warmup}
    phases = [warming] if warmup else []
    if iters > warmup:
        decay = {'type': 'CosineAnnealingLR', 'T_max': iters - warmup, 'eta_min': LR / 100, 'by_epoch': False}
        phases.append({**decay, 'begin': warmup, 'end': iters})
    editor.set('param_scheduler', phases)
    optimizer = editor.get('optim_wrapper.optimizer')
    if isinstance(optimizer, dict) and str(optimizer.get('type')).startswith('AdamW'):
        editor.set('optim_wrapper.optimizer.lr', LR)
        if _has_fused_adamw():
            editor.set('optim_wrapper.optimizer.fused', True)  # same numbers, a tenth of a second an iteration less
    else:
        fused = {'fused': True} if _has_fused_adamw() else {}
        editor.set('optim_wrapper.optimizer', {'type': 'AdamW', 'lr': LR, 'weight_decay': 0.05, **fused})
    if editor.get('optim_wrapper.constructor') is not NOT_SET:  # layer decay: for the fine-tuning of trained layers
        editor.drop('optim_wrapper.constructor')
        editor.drop('optim_wrapper.paramwise_cfg')
    for path, node in walk(editor.get('optim_wrapper.paramwise_cfg'), 'optim_wrapper.paramwise_cfg'):
        if node.get('lr_mult', 1) < 1:
            editor.set_key(path, node, 'lr_mult', 1.0)
    if any('Shared' in str(node.get('type')) for _, node in walk(editor.cfg.model)):
        editor.set('optim_wrapper.paramwise_cfg.custom_keys.shared_fcs.lr_mult', SHARED_FC_LR_MULT)
    if editor.get('optim_wrapper.accumulative_counts') is not NOT_SET:
        editor.drop('optim_wrapper.accumulative_counts')
    if editor.get('auto_scale_lr.enable') is True:
        editor.set('auto_scale_lr.enable', False)


def _has_fused_adamw() -> bool:
    """Whether torch updates all weights in one go on this device: on the CPU from 2.4 on."""
    try:
        torch.optim.AdamW([torch.zeros(1, device=get_device(), requires_grad=True)], fused=True)
    except RuntimeError:
        return False
    return True


def _hooks(editor: ConfigEditor, iters: int) -> None:
    """Logging and checkpoints by iteration; no hook that waits for an epoch of the real schedule; quick batch norms."""
    every = editor.get('train_cfg.val_interval')
    editor.set('default_hooks.logger', {'type': 'LoggerHook', 'interval': LOG_INTERVAL, 'log_metric_by_epoch': False})
    editor.set(
        'default_hooks.checkpoint',
        {'type': 'CheckpointHook', 'by_epoch': False, 'interval': every, 'max_keep_ckpts': 1},
    )
    editor.set('log_processor', {'type': 'LogProcessor', 'window_size': LOG_INTERVAL, 'by_epoch': False})
    hooks = editor.get('custom_hooks')
    hooks = hooks if isinstance(hooks, (list, tuple)) else []
    kept = [hook for hook in hooks if type_name(hook) in _KEPT_HOOKS or str(hook['type']).startswith('mmext_')]
    editor.set('custom_hooks', [*kept, {'type': 'mmext_backbones.BatchNormMomentumHook'}])
