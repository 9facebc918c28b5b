"""Data sets inside of others, and of kinds of their own: guarded where they can be, else as their library has them."""

import copy
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DATASETS, TRANSFORMS
from torch.utils.data import Dataset, IterableDataset

from mmext_backbones.datasets.bad_data.dataset import guarded_dataset, inner_datasets
from mmext_backbones.datasets.bad_data.guard import Guard, guard_of
from mmext_backbones.datasets.bad_data.kinds import BadDataError
from mmext_backbones.datasets.bad_data.report import check_splits, count_errors
from mmext_backbones.datasets.bad_data.steps import failed_step, flat, loads, nested, reads
from mmext_backbones.datasets.metainfo import classes_of, metainfo_of
from mmext_backbones.utils import attempts
from mmext_backbones.utils.attempts import attempt
from mmext_backbones.utils.errors import UserError

from .toy import BOXES, LOAD, MAPS, Loops, coco, config, maps, write_coco, write_maps

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

METRIC = {'type': 'CocoMetric', 'metric': 'bbox'}


@DATASETS.register_module()
class Plain(Dataset):
    """Numbers; neither metainfo nor a pipeline."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {'inputs': index}


@DATASETS.register_module()
class Stream(IterableDataset):
    def __iter__(self):
        yield from ({'inputs': index} for index in range(3))


@DATASETS.register_module()
class OwnWrapper:
    """A person's own wrapper, with a name of its own for what is inside."""

    def __init__(self, source):
        self.source = DATASETS.build(source)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[index]


@DATASETS.register_module()
class LooksAtOnce(BaseDataset):
    """Reads its samples as it is built."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = self.get_data_info(0)

    def load_data_list(self):
        return [{'number': i} for i in range(3)]


@DATASETS.register_module()
class OwnEntries(BaseDataset):
    """Its entries are no dicts."""

    def load_data_list(self):
        return [{'x': 0}]

    def get_data_info(self, idx):
        return 'entry'

    def prepare_data(self, idx):
        return {'inputs': self.get_data_info(idx)}


@TRANSFORMS.register_module()
class FailsOn(BaseTransform):
    """Fails on the picture whose red is `value`, or on all."""

    def __init__(self, value=2):
        self.value = value

    def transform(self, results):
        if self.value in (None, results['img'][0, 0, 2]):
            raise IndexError('out of the picture')
        return results


def test_two_validation_sets_each_measured_by_itself(tmp_path, capfd):
    for name in ('val', 'more'):
        write_coco(tmp_path, name)
    metrics = [{**METRIC, 'ann_file': str(tmp_path / f'{name}.json')} for name in ('val', 'more')]
    evaluator = {'type': 'MultiDatasetsEvaluator', 'metrics': metrics, 'dataset_prefixes': ['val', 'more']}
    both = {'type': 'ConcatDataset', 'datasets': [coco(tmp_path, name, test_mode=True) for name in ('val', 'more')]}
    for skip in ('stop', 'skip'):
        cfg = config('mmdet', val=both, val_evaluator=evaluator, bad_data=skip)
        dataset = Loops(cfg, tmp_path / skip).val().dataloader.dataset
        assert dataset.metainfo['cumulative_sizes'] == [3, 6]
        assert all(guard_of(leaf) is not None for leaf in inner_datasets(dataset))


def test_each_metric_is_without_what_its_own_set_is_without(tmp_path, capfd):
    for name in ('val', 'more'):
        write_coco(tmp_path, name)
    (tmp_path / 'more' / 'more_2.png').write_bytes(b'')
    metrics = [{**METRIC, 'ann_file': str(tmp_path / f'{name}.json')} for name in ('val', 'more')]
    evaluator = {'type': 'MultiDatasetsEvaluator', 'metrics': metrics, 'dataset_prefixes': ['val', 'more']}
    both = {'type': 'ConcatDataset', 'datasets': [coco(tmp_path, name, test_mode=True) for name in ('val', 'more')]}
    loop = Loops(config('mmdet', val=both, val_evaluator=evaluator, bad_data='skip'), tmp_path).val()
    assert loop.dataloader.dataset.metainfo['cumulative_sizes'] == [3, 5]
    assert [metric._coco_api.get_img_ids() for metric in loop.evaluator.metrics] == [[1, 2, 3], [1, 3]]


def test_metainfo_that_is_a_list(tmp_path, capfd):
    names = ('train', 'more')
    for name in names:
        write_coco(tmp_path, name)
    sets = [coco(tmp_path, name, metainfo={'classes': ('disc', 'bar'), 'source': name}) for name in names]
    cfg = config('mmdet', {'type': 'ConcatDataset', 'datasets': sets})
    dataset = Loops(cfg, tmp_path).train().dataloader.dataset
    assert isinstance(dataset.metainfo, list)
    assert classes_of(dataset) == ('disc', 'bar')
    assert metainfo_of(dataset)['source'] == 'train'
    assert len(dataset) == 6
    assert not count_errors(check_splits(cfg, ('train',), masks=False))
    cfg.model.bbox_head.num_classes = 3
    with pytest.raises(BadDataError, match=r'bbox_head\.num_classes is 3'):
        Loops(cfg, tmp_path).train()


@pytest.mark.parametrize('wrapper', ['RepeatDataset', 'ClassBalancedDataset', 'KFoldDataset', 'mixed', 'lazy', 'deep'])
def test_wrappers_are_what_they_are_without_guards(wrapper, tmp_path, capfd):
    write_coco(tmp_path, 'train', 5)
    inner = coco(tmp_path, 'train')
    kinds = {
        'RepeatDataset': {'type': 'RepeatDataset', 'times': 2, 'dataset': inner},
        'ClassBalancedDataset': {'type': 'ClassBalancedDataset', 'oversample_thr': 0.1, 'dataset': inner},
        'KFoldDataset': {'type': 'mmpretrain.KFoldDataset', 'num_splits': 5, 'seed': 1, 'dataset': inner},
        'mixed': {
            'type': 'MultiImageMixDataset',
            'pipeline': [{'type': 'RandomFlip', 'prob': 0.0}, BOXES[-1]],
            'dataset': coco(tmp_path, 'train', BOXES[:2]),
        },
        'lazy': {'type': 'ConcatDataset', 'lazy_init': True, 'datasets': [inner, inner]},
    }
    kinds['deep'] = {'type': 'RepeatDataset', 'times': 3, 'dataset': {'type': 'ConcatDataset', 'datasets': [inner] * 2}}
    if wrapper == 'KFoldDataset':
        pytest.importorskip('mmpretrain')
    config('mmdet')
    guarded, stock = guarded_dataset(kinds[wrapper], 'train'), DATASETS.build(kinds[wrapper])
    stock.full_init()
    assert len(guarded) == len(stock)
    assert type(guarded).__name__ == type(stock).__name__
    assert isinstance(guarded, type(stock))
    for index in (0, len(stock) - 1):
        assert guarded[index]['data_samples'].img_path == stock[index]['data_samples'].img_path
    assert guard_of(next(inner_datasets(guarded))) is not None
    (tmp_path / 'train' / 'train_3.png').write_bytes(b'')
    with pytest.raises(BadDataError, match=r'train_3\.png'):
        [guarded[index] for index in range(len(guarded))]


def test_data_sets_of_kinds_of_their_own(tmp_path, capfd):
    write_coco(tmp_path, 'train')
    cfg = config('mmdet', {'type': 'Plain'})
    assert [batch['inputs'] for batch in Loops(cfg, tmp_path).train().dataloader] == [[0], [1], [2]]
    cfg.train_dataloader.sampler = None
    cfg.train_dataloader.dataset = {'type': 'Stream'}
    assert len(list(guarded_dataset({'type': 'Stream'}, 'train'))) == 3
    assert guarded_dataset({'type': 'LooksAtOnce'}, 'train').first['number'] == 0
    assert guarded_dataset({'type': 'OwnEntries'}, 'train')[0] == {'inputs': 'entry'}
    own = guarded_dataset({'type': 'OwnWrapper', 'source': coco(tmp_path, 'train')}, 'train')
    assert guard_of(next(inner_datasets(own))) is not None
    report = check_splits(config('mmdet', {'type': 'Plain'}), ('train',), masks=False)
    assert report['train']['faults'] == {}


def test_what_fails_of_ours_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(attempts, 'warn', lambda text, level=logging.WARNING: told.append((level, text)))
    monkeypatch.setattr(attempts, '_told', set())
    assert attempt('the look', lambda: 1 // 0, default=3) == 3
    assert attempt('the look', lambda: 1 // 0, default=4) == 4
    assert attempt('the look', len, 'ab') == 2
    (first, line), (second, trace) = told
    assert line.startswith('the look: left out, and the run goes on (ZeroDivisionError: ')
    assert (first, second) == (logging.WARNING, logging.DEBUG)
    assert 'Traceback' in trace
    with pytest.raises(UserError):
        attempt('the look', lambda: (_ for _ in ()).throw(UserError('found')))


# --------------------------------------------------------------------------------------------------------------------
# Pipelines


def mixed(root: Path, *steps: dict) -> dict:
    return {
        'type': 'MultiImageMixDataset',
        'dataset': coco(root, 'train', BOXES[:2]),
        'pipeline': [*steps, {'type': 'PackDetInputs'}],
    }


def test_steps_of_a_wrapper_are_guarded(tmp_path, capfd):
    write_coco(tmp_path, 'train')
    cfg = config('mmdet', mixed(tmp_path, {'type': 'FailsOn', 'value': 2}))
    with pytest.raises(BadDataError, match=r'train_2\.png.*FailsOn fails on it: IndexError: out of the picture'):
        list(Loops(cfg, tmp_path).train().dataloader)
    report = check_splits(cfg, ('train',), masks=False)
    assert [item['path'][-11:] for item in report['train']['faults']['pipeline']['found']] == ['train_2.png']
    cfg.bad_data = 'skip'
    cfg.train_dataloader.num_workers = 1
    read = [batch['data_samples'][0].img_path for batch in Loops(cfg, tmp_path).train().dataloader]
    assert len(read) == 3
    assert not any(path.endswith('train_2.png') for path in read)
    cfg.train_dataloader.dataset = mixed(tmp_path, {'type': 'FailsOn', 'value': None})
    with pytest.raises(BadDataError, match='in a row cannot be used'):
        next(iter(Loops(cfg, tmp_path).train().dataloader))


def test_a_guarded_wrapper_can_be_sent_and_switched(tmp_path, capfd):
    write_coco(tmp_path, 'train')
    config('mmdet')
    built = guarded_dataset(mixed(tmp_path, {'type': 'FailsOn', 'value': 2}), 'train')
    for other in (pickle.loads(pickle.dumps(built)), copy.deepcopy(built)):
        assert type(other) is type(built)
        assert other[0]['data_samples'].img_path == built[0]['data_samples'].img_path
        with pytest.raises(BadDataError, match=r'train_2\.png'):
            other[1]
    built.update_skip_type_keys(['FailsOn'])  # as mmdet's hooks do at the end of a training
    assert built[1]['data_samples'].img_path.endswith('train_2.png')


def test_steps_inside_of_steps():
    config('mmdet')
    load, seg = {'type': 'LoadAnnotations', 'with_bbox': True}, {'type': 'LoadAnnotations', 'with_seg': True}
    flip = {'type': 'RandomFlip', 'prob': 0.5}
    choice = {'type': 'RandomChoice', 'transforms': [[seg], [flip]]}
    mapped = {
        'type': 'KeyMapper',
        'mapping': {'img': 'other'},
        'transforms': [{'type': 'RandomApply', 'transforms': flip}],
    }
    pipeline = Compose([LOAD, load, choice, mapped])
    names = [type(step).__name__ for step in nested(pipeline)]
    assert names.count('LoadAnnotations') == 2
    assert names.count('RandomFlip') == 2
    assert reads(pipeline) == {'img_path', 'seg_map_path'}
    assert reads(Compose([LOAD, load])) == {'img_path'}
    assert reads(Compose([FailsOn()])) == set()
    assert [loads(step) for step in pipeline.transforms] == [True, True, False, False]
    assert loads(Compose([LOAD, load]))
    inner = Compose([FailsOn(), Compose([FailsOn(3)])])
    assert [step.value for step in flat([inner])] == [2, 3]
    failing = FailsOn(None)
    failing.holder = Compose([failing])  # a circle
    assert list(nested(failing)) == [failing, failing.holder]
    pipeline = Compose([Compose([failing])])
    with pytest.raises(IndexError) as caught:
        pipeline({'img': np.zeros((1, 1, 1))})
    assert failed_step(caught.value, pipeline) is failing


def test_a_step_inside_of_another_is_named(tmp_path, capfd):
    write_coco(tmp_path, 'train')
    pipeline = [*BOXES[:2], {'type': 'RandomChoice', 'transforms': [[{'type': 'FailsOn'}]]}, BOXES[-1]]
    config('mmdet')
    built = guarded_dataset(coco(tmp_path, 'train', pipeline), 'train')
    with pytest.raises(BadDataError, match=r'train_2\.png.*: FailsOn fails on it'):
        built[1]


def test_maps_that_no_step_reads(tmp_path, capfd):
    write_coco(tmp_path, 'train')
    prefix = {'img': 'train/', 'seg': 'nowhere/'}
    config('mmdet')
    assert len(guarded_dataset(coco(tmp_path, 'train', data_prefix=prefix), 'train')[0]) == 2
    reading = [LOAD, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_seg': True}, BOXES[-1]]
    with pytest.raises(BadDataError, match=r'nowhere/train_1\.png.*no such file'):
        guarded_dataset(coco(tmp_path, 'train', reading, data_prefix=prefix), 'train')[0]


def test_a_map_inside_of_a_step_is_looked_at(tmp_path, capfd):
    write_maps(tmp_path, [0, 7])
    config('mmseg')
    inside = [LOAD, {'type': 'RandomApply', 'prob': 1.0, 'transforms': [{'type': 'LoadAnnotations'}]}, MAPS[-1]]
    with pytest.raises(BadDataError, match='has labels 7, and there are 2 classes'):
        guarded_dataset(maps(tmp_path, inside), 'train')[0]


class Clips:
    """As mmdet's data sets of videos under its samplers of frames: a sample is (video, frame)."""

    def __init__(self):
        self.metainfo = {}

    def __len__(self):
        return 2

    def get_data_info(self, index):
        return [{'video_length': 3}, {'video_length': 4}][index]

    def prepare_data(self, index):
        if index == (0, 1):
            raise OSError('cut')
        return index


def test_frames_of_videos():
    assert Guard(Clips(), 'train', False, None, [])((1, 3)) == (1, 3)
    with pytest.raises(BadDataError, match='cut'):
        Guard(Clips(), 'train', False, None, [])((0, 1))
    video, frame = Guard(Clips(), 'train', True, None, [])((0, 1))
    assert (video, frame) != (0, 1)
    assert video in range(2)
    assert frame in range((3, 4)[video])
    assert Guard(Clips(), 'train', True, None, [])((0, 1)) == (video, frame)
