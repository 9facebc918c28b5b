"""The config that uses a component in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from . import drawing, labels
from .arguments import DEFAULTS, HOOKS, METRICS
from .tasks import DIGEST, SEED, TASKS, base, dataset, put
from .walk import Component

__all__ = ['CannotDraw', 'recipe']

COCO = {'type': 'mmdet.CocoMetric'}
CONCAT = {'type': 'mmdet.ConcatDataset'}
LOADED = TASKS['detect'].train[:2]
PACK = TASKS['detect'].train[-1]
USUAL = {'mmengine': 'detect', 'mmcv': 'classify', 'mmdet': 'detect', 'mmseg': 'segment', 'mmpretrain': 'classify'}


NOT_DRAWN = {
    'mmdet.DODDataset': 'reads pickles of the package d_cube (ddd-dataset), which is not installed',
    'mmdet.DSDLDetDataset': 'reads DSDL by the package dsdl, which is not installed',
    'mmseg.DSDLSegDataset': 'reads DSDL by the package dsdl, which is not installed',
}


class CannotDraw(Exception):
    """There is no small run of a component; the text says why."""


def recipe(component: Component, root: Path) -> dict[str, Any]:
    """The config of a run with a component, whose data is drawn under `root`.

    Raises:
        CannotDraw: if there is none.
    """
    if component.name in NOT_DRAWN:
        raise CannotDraw(NOT_DRAWN[component.name])
    make = {
        'DATASETS': _data_set, 'DATA_SAMPLERS': _sampler, 'METRICS': _metric, 'EVALUATOR': _evaluator, 'HOOKS': _hook,
        'LOOPS': _loop, 'RUNNERS': _runner,
    }[component.registry]  # fmt: skip
    return make(component, root)


# --------------------------------------------------------------------------------------------------------------------
# Data sets: their task and format

DATA: dict[str, tuple[str, Callable]] = {
    'mmdet.ADE20KPanopticDataset': ('detect boxes', drawing.panoptic),
    'mmdet.CocoPanopticDataset': ('detect boxes', drawing.panoptic),
    'mmdet.BaseDetDataset': ('detect boxes', drawing.instances_json),
    'mmdet.CrowdHumanDataset': ('detect boxes', drawing.crowdhuman),
    'mmdet.Flickr30kDataset': ('detect boxes', drawing.flickr30k),
    'mmdet.MDETRStyleRefCocoDataset': ('detect boxes', drawing.flickr30k),
    'mmdet.ODVGDataset': ('detect boxes', drawing.odvg),
    'mmdet.OpenImagesChallengeDataset': ('detect boxes', drawing.open_images),
    'mmdet.OpenImagesDataset': ('detect boxes', drawing.open_images),
    'mmdet.VOCDataset': ('detect boxes', drawing.voc),
    'mmdet.WIDERFaceDataset': ('detect boxes', drawing.wider_face),
    'mmdet.XMLDataset': ('detect boxes', drawing.voc),
    'mmdet.ADE20KSegDataset': ('segment mmdet', drawing.maps),
    'mmdet.BaseSegDataset': ('segment mmdet', drawing.maps),
    'mmdet.CocoSegDataset': ('segment mmdet', drawing.maps),
    'mmdet.CocoCaptionDataset': ('caption', drawing.captions),
    'mmdet.RefCocoDataset': ('refer', drawing.refcoco),
    'mmdet.ReIDDataset': ('embed', drawing.people),
    'mmdet.BaseVideoDataset': ('track', drawing.video),
    'mmdet.MOTChallengeDataset': ('track', drawing.video),
    'mmdet.YouTubeVISDataset': ('track masks', drawing.video),
    'mmseg.BaseSegDataset': ('segment', drawing.maps),
    'mmseg.BaseCDDataset': ('segment changes', drawing.changes),
    'mmseg.LEVIRCDDataset': ('segment changes', drawing.changes),
    'mmseg.NYUDataset': ('depth', drawing.depths),
    'mmseg.DecathlonDataset': ('segment', drawing.decathlon),
    'mmpretrain.NLVR2': ('classify', labels.nlvr2),
    'mmpretrain.MultiLabelDataset': ('classify several', labels.list_of_labels),
    'mmpretrain.VOC': ('classify several', labels.voc),
    'mmpretrain.MultiTaskDataset': ('classify tasks', labels.list_of_labels),
    'mmpretrain.RefCOCO': ('answer', drawing.refcoco),
    **{f'mmpretrain.{name}': ('answer', format) for name, format in labels.TEXT_FORMATS.items()},
}


def _run_of(name: str, root: Path) -> dict:
    """The usual run of a data set; or of a task."""
    if name in TASKS:
        return base(name, root)
    library, _, short = name.partition('.')
    usual = {
        'mmdet': ('detect', drawing.coco), 'mmseg': ('segment', drawing.maps),
        'mmpretrain': ('classify', labels.FORMATS.get(short)),
    }  # fmt: skip
    task, format = DATA.get(name) or usual[library]
    if format is None:
        raise CannotDraw('nobody has written its format yet')
    return base(task, root, name, format=format)


def _data_set(component: Component, root: Path) -> dict:
    wrap = WRAPPERS.get(component.name)
    if wrap is not None:
        return wrap(root)
    cfg = _run_of(component.name, root)
    if component.short in ('ADE20KPanopticDataset', 'CocoPanopticDataset', 'ODVGDataset', 'MDETRStyleRefCocoDataset'):
        put(cfg, eval_evaluator=[DIGEST])  # the metric made for it needs what is not drawn
    if component.short == 'NLVR2':
        steps = {'type': 'ApplyToList', 'scatter_key': 'img_path', 'transforms': TASKS['classify'].test[:2],
                 'collate_keys': ['img']}  # fmt: skip
        for split in ('train', 'val', 'test'):
            cfg[f'{split}_dataloader']['dataset']['pipeline'] = [SEED, steps, TASKS['classify'].test[-1]]
        cfg['model']['data_preprocessor'] = {'type': 'mmengine.BaseDataPreprocessor'}
        put(cfg, eval_evaluator=[DIGEST])
    if component.short in ('MNIST', 'FashionMNIST', 'CIFAR10', 'CIFAR100'):
        for split in ('train', 'val', 'test'):
            del cfg[f'{split}_dataloader']['dataset']['pipeline'][1]  # they hold the pictures themselves
        if 'MNIST' in component.short:
            cfg['model']['data_preprocessor'] |= {'mean': [100.0], 'std': [50.0]}
    return cfg


def _wrapped(task: str, root: Path, both: bool, **wrapper: Any) -> dict:
    """The usual run of a task with its data set wrapped: that of training, or of all splits."""
    cfg = base(task, root)
    for split in ('train', 'val', 'test') if both else ('train',):
        node = cfg[f'{split}_dataloader']
        inner = (
            {'datasets': [node['dataset'], node['dataset']]}
            if 'Concat' in wrapper['type']
            else {'dataset': node['dataset']}
        )
        node['dataset'] = {**inner, **wrapper}
    if 'Concat' in wrapper['type']:
        put(cfg, eval_evaluator=[{**COCO, 'metric': ['bbox', 'segm']}, DIGEST])
    return cfg


def _mixed(task: str, root: Path, name: str, mix: list[dict]) -> dict:
    cfg = _wrapped(task, root, False, type=name, pipeline=[*mix, TASKS[task].train[-1]])
    cfg['train_dataloader']['dataset']['dataset']['pipeline'] = [SEED, *TASKS[task].train[:2]]
    return cfg


MOSAIC = [{'type': 'Mosaic', 'img_scale': (48, 48), 'pad_val': 114.0}, {'type': 'Resize', 'scale': (48, 48)}]
WRAPPERS: dict[str, Callable[[Path], dict]] = {
    'mmengine.ConcatDataset': lambda root: _wrapped('detect', root, True, type='mmengine.ConcatDataset'),
    'mmdet.ConcatDataset': lambda root: _wrapped('detect', root, True, type='mmdet.ConcatDataset'),
    'mmengine.RepeatDataset': lambda root: _wrapped('detect', root, False, type='RepeatDataset', times=2),
    'mmengine.ClassBalancedDataset': lambda root: _wrapped(
        'detect', root, False, type='ClassBalancedDataset', oversample_thr=0.9
    ),
    'mmpretrain.KFoldDataset': lambda root: _wrapped('classify', root, True, type='KFoldDataset', num_splits=4, seed=1),
    'mmdet.MultiImageMixDataset': lambda root: _mixed('detect boxes', root, 'mmdet.MultiImageMixDataset', MOSAIC),
    'mmseg.MultiImageMixDataset': lambda root: _mixed(
        'segment', root, 'mmseg.MultiImageMixDataset', [{'type': 'RandomMosaic', 'prob': 1.0, 'img_scale': (48, 48)}]
    ),
}


# --------------------------------------------------------------------------------------------------------------------
# Samplers


def _sampler(component: Component, root: Path) -> dict:
    name, video = component.short, component.short.startswith('Track')
    cfg = base('track', root) if video else base(USUAL[component.library], root)
    loader, plain = cfg['train_dataloader'], {'type': 'DefaultSampler', 'shuffle': True}
    if name in ('InfiniteSampler', 'MultiSourceSampler', 'GroupMultiSourceSampler'):
        cfg['train_cfg'] = {'type': 'IterBasedTrainLoop', 'max_iters': 6, 'val_interval': 3}
        put(cfg, default_hooks__checkpoint={'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3})
    if 'Multi' in name or name == 'CustomSampleSizeSampler':
        loader['dataset'] = {**CONCAT, 'datasets': [loader['dataset'], loader['dataset']]}
    extra = {
        'MultiDataSampler': {'dataset_ratio': [1, 2]}, 'CustomSampleSizeSampler': {'dataset_size': [2, 4]},
        'MultiSourceSampler': {'batch_size': 2, 'source_ratio': [1, 1]},
        'GroupMultiSourceSampler': {'batch_size': 2, 'source_ratio': [1, 1]}, 'RepeatAugSampler': {'num_repeats': 2},
        'ClassAwareSampler': {'num_sample_class': 1}, 'SequentialSampler': {'subsample_type': 'sequential'},
    }  # fmt: skip
    if name == 'GroupMultiSourceSampler':
        loader['num_workers'] = 1  # it draws from numpy's own generator, which SurveySeed sets in the loading process
    if name.endswith('BatchSampler'):
        batches = {'batch_size': [2, 2], 'num_datasets': 2} if 'Multi' in name else {}
        loader |= {'sampler': {'type': 'TrackImgSampler'} if video else plain}
        loader |= {'batch_sampler': {'type': component.name, **batches}}
    else:
        loader['sampler'] = {'type': component.name, **extra.get(name, {})}
    if name in ('SequentialSampler', 'TrackImgSampler'):
        put(cfg, eval_dataloader__sampler=loader['sampler'])
    return cfg


# --------------------------------------------------------------------------------------------------------------------
# Metrics


def _metric(component: Component, root: Path) -> dict:
    where, arguments = METRICS.get(component.name, ('answer', {}))
    cfg = _run_of(TASKS[where].data if where in TASKS and where != 'answer' else where, root)
    folder = Path(cfg['train_dataloader']['dataset']['data_root'])
    given = {key: value.format(root=folder) if isinstance(value, str) else value for key, value in arguments.items()}
    put(cfg, eval_evaluator=[{'type': component.name, **given}, DIGEST])
    if component.short == 'OVCocoMetric':
        kinds = tuple(drawing.classes_of(DATASETS.get('mmdet.CocoDataset')))
        told = {'classes': kinds, 'base_classes': kinds[:1], 'novel_classes': kinds[1:2]}
        put(cfg, eval_dataloader__dataset__metainfo=told)
    if component.short in drawing.FOR_METRICS:
        drawing.FOR_METRICS[component.short](folder)
    if component.short == 'DODCocoMetric':
        put(cfg, eval_dataloader__dataset__ann_file='annotations.pkl')
    return cfg


def _evaluator(component: Component, root: Path) -> dict:
    if component.short == 'Evaluator':
        return put(base('detect', root), eval_evaluator={'type': component.name, 'metrics': [COCO, DIGEST]})
    cfg = _wrapped('detect', root, True, **CONCAT)
    metrics = {'metrics': [COCO, COCO], 'dataset_prefixes': ['one', 'two']}
    return put(cfg, eval_evaluator={'type': component.name, **metrics})


# --------------------------------------------------------------------------------------------------------------------
# Loops and runners


def _loop(component: Component, root: Path) -> dict:
    name = component.short
    if name.startswith('Retrieval'):
        cfg = base('retrieval', root, 'mmpretrain.Flickr30kRetrieval', format=labels.flickr30k)
        put(cfg, eval_dataloader__dataset__test_mode=True, eval_cfg={'type': 'RetrievalValLoop'})
        put(cfg, test_cfg={'type': 'RetrievalTestLoop'})
        return put(cfg, eval_evaluator=[{'type': 'mmpretrain.RetrievalRecall', 'topk': (1, 2)}])
    cfg = base('detect', root)
    if name == 'IterBasedTrainLoop':
        put(cfg, default_hooks__checkpoint={'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3})
        return put(cfg, train_cfg={'type': name, 'max_iters': 7, 'val_interval': 3})
    if name == 'EpochBasedTrainLoop':
        return put(cfg, train_cfg={'type': name, 'max_epochs': 3, 'val_begin': 2, 'dynamic_intervals': [(2, 1)]})
    if name == 'TeacherStudentValLoop':
        put(cfg, model__type='mmengine.SurveyPair', val_cfg={'type': component.name})
        return cfg
    return put(cfg, **{'val_cfg' if name == 'ValLoop' else 'test_cfg': {'type': name}})


def _runner(component: Component, root: Path) -> dict:
    cfg = put(base('detect', root), runner_type=component.short)
    return put(cfg, strategy={'type': 'SingleDeviceStrategy'}) if component.short == 'FlexibleRunner' else cfg


# --------------------------------------------------------------------------------------------------------------------
# Hooks

RESNET = {'type': 'mmpretrain.ResNet', 'depth': 18, 'out_indices': (3,)}
ARC_FACE = {'type': 'mmpretrain.ArcFaceClsHead', 'num_classes': 2, 'in_channels': 512}
POOL = {'type': 'mmpretrain.GlobalAveragePooling'}


def _hook(component: Component, root: Path) -> dict:
    name = component.short
    if name == 'TrackVisualizationHook':
        cfg = base('track', root)
    elif name == 'GroundingVisualizationHook':
        cfg = _run_of('mmdet.Flickr30kDataset', root)
        put(cfg, eval_dataloader__dataset__metainfo={'classes': ('first', 'second')})  # for drawings of a validation
    elif name == 'YOLOXModeSwitchHook':
        cfg = WRAPPERS['mmdet.MultiImageMixDataset'](root)
    else:
        cfg = base(USUAL[component.library], root)
    if name in DEFAULTS:
        place, arguments = DEFAULTS[name]
        return put(cfg, **{f'default_hooks__{place}': {'type': name, **arguments}})
    cfg['custom_hooks'].append({'type': component.name, **HOOKS.get(component.name, {})})
    preprocessor = cfg['model']['data_preprocessor']
    if name == 'EarlyStoppingHook':
        put(cfg, train_cfg__max_epochs=4, train_cfg__val_interval=1)
    elif name == 'ClassNumCheckHook':
        preprocessor['num_classes'] = 2  # the hook takes it for a head
    elif name == 'MeanTeacherHook':
        put(cfg, model__type='mmengine.SurveyPair')
    elif name == 'PrepareTTAHook':
        pack, views = (
            TASKS['detect'].test[-1],
            [{'type': 'RandomFlip', 'prob': 1.0}, {'type': 'RandomFlip', 'prob': 0.0}],
        )
        steps = {'type': 'TestTimeAug', 'transforms': [views, [LOADED[1]], [pack]]}
        put(cfg, test_dataloader__dataset__pipeline=[SEED, LOADED[0], steps])
    elif name == 'SetAdaptiveMarginsHook':
        parts = {'backbone': RESNET, 'neck': POOL, 'head': ARC_FACE, 'data_preprocessor': preprocessor}
        put(cfg, model={'type': 'mmpretrain.ImageClassifier', **parts})
        put(cfg, train_dataloader__dataset__indices=[0, 1, 5])  # with as many of each class its margins are NaN
    elif name == 'PrepareProtoBeforeValLoopHook':
        data = dataset('classify', root, train=False)
        loader = {'batch_size': 2, 'num_workers': 0, 'dataset': data, 'collate_fn': {'type': 'default_collate'},
                  'sampler': {'type': 'DefaultSampler', 'shuffle': False}}  # fmt: skip
        parts = {
            'image_encoder': [RESNET, POOL],
            'prototype': loader,
            'head': ARC_FACE,
            'data_preprocessor': preprocessor,
        }
        put(cfg, model={'type': 'mmpretrain.ImageToImageRetriever', **parts}, eval_evaluator=[DIGEST])
    return cfg
