"""A whole run for each task, in which any component can take its place."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.registry import DATASETS

from . import drawing, labels

__all__ = ['TASKS', 'Task', 'base', 'dataset', 'put']

Format = Callable[[Path, type], dict]
SEED = {'type': 'mmengine.SurveySeed'}
DIGEST = {'type': 'mmengine.SurveyDigest'}
IMAGE = {'type': 'LoadImageFromFile'}
FLIP = {'type': 'RandomFlip', 'prob': 0.5}
SMALL = {'type': 'Resize', 'scale': (48, 48)}
DETECTION_KEYS = (
    'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction', 'instances', 'text',
    'phrase_ids', 'phrases', 'tokens_positive', 'sent_ids', 'custom_entities', 'image_level_labels', 'gt_caption',
)  # fmt: skip
TEXT_KEYS = (
    'gt_answer', 'gt_answer_weight', 'gt_caption', 'choices', 'hint', 'grade', 'subject', 'has_image', 'gt_bboxes',
    'text', 'question', 'question_id', 'image_id', 'gt_text_id', 'gt_image_id', 'chat_content', 'shots',
)  # fmt: skip
PACK_DETECTION = {'type': 'PackDetInputs', 'meta_keys': DETECTION_KEYS}
BOXES = {'type': 'LoadAnnotations', 'with_bbox': True}
NORMAL = {'mean': [100.0] * 3, 'std': [50.0] * 3}


class Task(NamedTuple):
    """What a run of a task is made of."""

    scope: str
    data: str  # its usual data set
    format: Format  # of that
    train: list[dict]  # pipeline
    test: list[dict]
    preprocessor: dict
    metrics: tuple[dict, ...] = ()  # beside the digest
    visualizer: str = 'Visualizer'


def _task(scope: str, data: str, format: Format, load: list, pack: dict, preprocessor: dict, **more: Any) -> Task:
    """One whose pipelines load, resize or flip, and pack."""
    resize = [] if scope == 'mmdet' else [SMALL]
    preprocessor = {**NORMAL, **preprocessor}
    test = [*load[:1], *resize, *load[1:], pack]
    return Task(scope, data, format, [*load, *resize, FLIP, pack], test, preprocessor, **more)


def _frames(*steps: dict) -> dict:
    return {'type': 'TransformBroadcaster', 'share_random_params': True, 'transforms': list(steps)}


def _track(load: dict, masks: bool) -> Task:
    pack = {'type': 'PackTrackInputs'}
    sample = {'type': 'UniformRefFrameSample', 'num_ref_imgs': 1, 'frame_range': 2}
    preprocessor = {'type': 'mmdet.TrackDataPreprocessor', 'pad_mask': masks, **NORMAL}
    train, test = [sample, _frames(IMAGE, load, SMALL, FLIP), pack], [_frames(IMAGE, load, SMALL), pack]
    named = {'visualizer': 'TrackLocalVisualizer'}
    return Task('mmdet', 'mmdet.BaseVideoDataset', drawing.video, train, test, preprocessor, **named)


DETECTION = {'type': 'mmdet.DetDataPreprocessor'}
SQUARE = {'size': (48, 48), 'test_cfg': {'size': (48, 48)}}
SEGMENTATION = {'type': 'SegDataPreProcessor', **SQUARE}
PAIRS = {'type': 'SegDataPreProcessor', **SQUARE, 'mean': [100.0] * 6, 'std': [50.0] * 6}
PICTURES = {'type': 'mmpretrain.ClsDataPreprocessor'}
TEXTS = {'type': 'mmpretrain.MultiModalDataPreprocessor'}
COCO = {'type': 'mmdet.CocoMetric', 'metric': ['bbox', 'segm'], 'ann_file': '{root}/annotations.json'}
NO_BOXES = {'type': 'LoadAnnotations', 'with_bbox': False, 'with_label': False}
PACK_SEGMENTATION = {'type': 'PackSegInputs'}
PACK_REFERRING = {
    'type': 'PackDetInputs',
    'meta_keys': ('img_id', 'img_path', 'ori_shape', 'img_shape', 'gt_masks', 'text'),
}
PACK_SEVERAL = {'type': 'PackInputs', 'algorithm_keys': ('gt_label_difficult',)}
PACK_TASKS = {'type': 'PackMultiTaskInputs', 'multi_task_fields': ('gt_label',)}
PACK_TEXTS = {'type': 'PackInputs', 'algorithm_keys': TEXT_KEYS}
TASKS = {
    'detect': _task(
        'mmdet', 'mmdet.CocoDataset', drawing.coco, [IMAGE, {**BOXES, 'with_mask': True}], PACK_DETECTION,
        {**DETECTION, 'pad_mask': True}, metrics=(COCO,), visualizer='DetLocalVisualizer',
    ),
    'detect boxes': _task(
        'mmdet', 'mmdet.BaseDetDataset', drawing.instances_json, [IMAGE, BOXES], PACK_DETECTION, DETECTION,
        metrics=({'type': 'mmdet.CocoMetric'},), visualizer='DetLocalVisualizer',
    ),
    'caption': _task('mmdet', 'mmdet.CocoCaptionDataset', drawing.captions, [IMAGE], PACK_DETECTION, DETECTION),
    'refer': _task(
        'mmdet', 'mmdet.RefCocoDataset', drawing.refcoco, [IMAGE, {**NO_BOXES, 'with_mask': True}], PACK_REFERRING,
        DETECTION,
    ),
    'segment mmdet': _task(
        'mmdet', 'mmdet.BaseSegDataset', drawing.maps, [IMAGE, {**NO_BOXES, 'with_seg': True}], PACK_DETECTION,
        {**DETECTION, 'pad_seg': True}, metrics=({'type': 'mmdet.SemSegMetric'},),
    ),
    'track': _track({'type': 'LoadTrackAnnotations'}, False),
    'track masks': _track({'type': 'LoadTrackAnnotations', 'with_mask': True}, True),
    'embed': Task(
        'mmdet', 'mmdet.ReIDDataset', drawing.people, [IMAGE, SMALL, FLIP, {'type': 'PackReIDInputs'}],
        [IMAGE, SMALL, {'type': 'PackReIDInputs'}], {'type': 'mmdet.ReIDDataPreprocessor', **NORMAL},
    ),
    'segment': _task(
        'mmseg', 'mmseg.BaseSegDataset', drawing.maps, [IMAGE, {'type': 'LoadAnnotations'}], PACK_SEGMENTATION,
        SEGMENTATION, metrics=({'type': 'mmseg.IoUMetric'},), visualizer='SegLocalVisualizer',
    ),
    'segment changes': _task(
        'mmseg', 'mmseg.LEVIRCDDataset', drawing.changes,
        [{'type': 'LoadMultipleRSImageFromFile'}, {'type': 'ConcatCDInput'}, {'type': 'LoadAnnotations'}],
        PACK_SEGMENTATION, PAIRS, metrics=({'type': 'mmseg.IoUMetric'},),
    ),
    'depth': _task(
        'mmseg', 'mmseg.NYUDataset', drawing.depths, [IMAGE, {'type': 'LoadDepthAnnotation'}], PACK_SEGMENTATION,
        SEGMENTATION, metrics=({'type': 'mmseg.DepthMetric'},),
    ),
    'classify': _task(
        'mmpretrain', 'mmpretrain.CustomDataset', labels.folders, [IMAGE], {'type': 'PackInputs'}, PICTURES,
        metrics=({'type': 'mmpretrain.Accuracy'},), visualizer='UniversalVisualizer',
    ),
    'classify several': _task(
        'mmpretrain', 'mmpretrain.MultiLabelDataset', labels.list_of_labels, [IMAGE], PACK_SEVERAL, PICTURES,
        metrics=({'type': 'mmpretrain.AveragePrecision'},),
    ),
    'classify tasks': _task(
        'mmpretrain', 'mmpretrain.MultiTaskDataset', labels.list_of_labels, [IMAGE], PACK_TASKS, PICTURES
    ),
    'answer': _task('mmpretrain', 'mmpretrain.BaseDataset', labels.texts, [IMAGE], PACK_TEXTS, TEXTS),
}  # fmt: skip
TASKS['retrieval'] = TASKS['answer']
# data sets that leave their classes to the config
NAMELESS = tuple(f'mmdet.{kind}Dataset' for kind in ('BaseSeg', 'BaseVideo', 'Flickr30k', 'XML'))
NAMELESS += ('mmseg.BaseCDDataset', 'mmseg.BaseSegDataset')


def dataset(task: str, root: Path, *, train: bool, name: str | None = None, **given: Any) -> dict:
    """The config of a data set, drawn under `root` if it is not there.

    Args:
        task: A key of `TASKS`.
        root: Where its files are.
        train: With the pipeline of training.
        name: Of the data set; that of the task when None.
        **given: What it is to be given besides; ``format`` draws in another one.
    """
    settings = TASKS[task]
    name = name or settings.data
    cls = DATASETS.get(name)
    format = given.pop('format', settings.format)
    folder = root / f'{name} {format.__name__}'
    arguments = format(folder, cls)
    if name in NAMELESS:
        given = {'metainfo': {'classes': ('first', 'second')}, **given}
    if not train and settings.scope != 'mmpretrain' and name != 'mmseg.DecathlonDataset':
        given = {'test_mode': True, **given}  # the others have it from their split, or no test split
    pipeline = [SEED, *copy.deepcopy(settings.train if train else settings.test)]
    return {'type': name, 'data_root': str(folder), **arguments, 'pipeline': pipeline, **given}


def base(task: str, root: Path, name: str | None = None, **given: Any) -> dict:
    """The config of a run of a task with one of its data sets, as `dataset` has them."""
    settings = TASKS[task]
    train, test = (dataset(task, root, train=part, name=name, **given) for part in (True, False))
    if settings.scope == 'mmseg':
        test['indices'] = 2  # its visualizer takes a second for a picture
    folder, cls = train['data_root'], DATASETS.get(train['type'])
    kinds = (train.get('metainfo') or {}).get('classes') or drawing.classes_of(cls)
    if 'label_map_file' in train or 'label_file' in train:
        kinds = kinds[:2]
    metrics = [{k: v.format(root=folder) if isinstance(v, str) else v for k, v in m.items()} for m in settings.metrics]
    loader = {'num_workers': 0}
    if settings.scope == 'mmpretrain':
        loader['collate_fn'] = {'type': 'default_collate'}  # the library's own tool sets it
    evaluated = {**loader, 'batch_size': 1, 'dataset': test, 'sampler': {'type': 'DefaultSampler', 'shuffle': False}}
    return {
        'default_scope': settings.scope,
        'model': {'type': 'mmengine.SurveyToy', 'task': task, 'head': {'num_classes': len(kinds)},
                  'data_preprocessor': dict(settings.preprocessor)},
        'train_dataloader': {**loader, 'batch_size': 2, 'dataset': train,
                             'sampler': {'type': 'DefaultSampler', 'shuffle': True}},
        'val_dataloader': evaluated, 'test_dataloader': copy.deepcopy(evaluated),
        'val_evaluator': [*metrics, DIGEST], 'test_evaluator': [*metrics, DIGEST],
        'train_cfg': {'by_epoch': True, 'max_epochs': 2, 'val_interval': 2}, 'val_cfg': {}, 'test_cfg': {},
        'optim_wrapper': {'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9}},
        'param_scheduler': [{'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'end': 6}],
        'default_hooks': {'logger': {'type': 'LoggerHook', 'interval': 1},
                          'checkpoint': {'type': 'CheckpointHook', 'interval': 1}},
        'custom_hooks': [{'type': 'mmengine.SurveyRecorder'}],
        'visualizer': {'type': settings.visualizer, 'name': 'visualizer',
                       'vis_backends': [{'type': 'LocalVisBackend'}]},
        'env_cfg': {'mp_cfg': {'mp_start_method': 'fork', 'opencv_num_threads': 0}},
        'randomness': {'seed': 0}, 'log_level': 'INFO',
    }  # fmt: skip


def put(cfg: dict, **values: Any) -> dict:
    """Sets keys of a config; ``__`` goes a level down, and val and test are set alike by ``eval_``."""
    for path, value in values.items():
        for split in ('val_', 'test_') if path.startswith('eval_') else ('',):
            node = cfg
            *parents, last = (split + path.removeprefix('eval_')).split('__')
            for key in parents:
                node = node[key]
            node[last] = copy.deepcopy(value)
    return cfg
