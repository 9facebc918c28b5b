"""Batches as the three libraries pack them, panoptic ones and those of tracking included, survive being saved."""

import random

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement

from mmext_backbones.engine.nonfinite.saved_batch import image_paths, read_batch, save_whole, tensors

BOXES = np.array([[1, 2, 10, 12], [3, 4, 9, 9]], np.float32)


def loaded() -> dict:
    """What the loading and resizing transforms of any of them leave of one image."""
    return {
        'img': np.arange(24 * 32 * 3, dtype=np.uint8).reshape(24, 32, 3),
        'img_path': 'a.png',
        'img_id': 3,
        'ori_shape': (48, 64),
        'img_shape': (24, 32),
        'scale': (32, 24),
        'scale_factor': (0.5, np.float64(0.5)),
        'flip': True,
        'flip_direction': 'horizontal',
        'homography_matrix': np.eye(3, dtype=np.float32),
    }


def detection(masks: str) -> dict:
    pytest.importorskip('mmdet')
    from mmdet.datasets.transforms import PackDetInputs
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks, PolygonMasks

    made = {
        'bitmap': lambda: BitmapMasks(np.arange(2 * 24 * 32, dtype=np.uint8).reshape(2, 24, 32) % 2, 24, 32),
        'polygon': lambda: PolygonMasks([[np.array([1.0, 1, 5, 1, 5, 5])], [np.array([2.0, 2, 8, 2, 8, 8])]], 24, 32),
    }
    instances = {'gt_bboxes': HorizontalBoxes(BOXES), 'gt_bboxes_labels': np.array([0, 1]), 'gt_masks': made[masks]()}
    panoptic = {'gt_seg_map': np.ones((24, 32), np.uint8)}
    return PackDetInputs()({**loaded(), **instances, **panoptic, 'gt_ignore_flags': np.array([False, True])})


def tracking() -> dict:
    pytest.importorskip('mmdet')
    from mmdet.datasets.transforms import PackTrackInputs

    instances = {'gt_bboxes': BOXES, 'gt_bboxes_labels': np.array([0, 1]), 'gt_instances_ids': np.array([4, 5])}
    video = {'frame_id': 0, 'video_id': 1, 'video_length': 2, 'key_frame_flags': True}
    frame = {**loaded(), **instances, **video, 'gt_ignore_flags': np.array([False, True])}
    return PackTrackInputs()({key: [value, value] for key, value in frame.items()})


def identities() -> dict:
    pytest.importorskip('mmdet')
    from mmdet.datasets.transforms import PackReIDInputs

    return PackReIDInputs()({key: [value, value] for key, value in {**loaded(), 'gt_label': 1}.items()})


def segmentation() -> dict:
    pytest.importorskip('mmseg')
    from mmseg.datasets.transforms import PackSegInputs

    maps = {'gt_seg_map': np.ones((24, 32), np.int64), 'gt_depth_map': np.ones((24, 32), np.float32)}
    return PackSegInputs()({**loaded(), **maps, 'seg_map_path': 'b.png', 'reduce_zero_label': False})


def classification(**truth: object) -> dict:
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets.transforms import PackInputs

    return PackInputs()({**loaded(), **truth})


def several_tasks() -> dict:
    pytest.importorskip('mmpretrain')
    from mmpretrain.datasets.transforms import PackMultiTaskInputs

    return PackMultiTaskInputs(multi_task_fields=('gt_label',))({**loaded(), 'gt_label': {'a': 0, 'b': 1}})


# what packs an image, the type of its sample, and images in it
BATCHES = {
    'bitmap masks': (lambda: detection('bitmap'), 'DetDataSample', 1),
    'polygon masks': (lambda: detection('polygon'), 'DetDataSample', 1),
    'tracking': (tracking, 'TrackDataSample', 2),
    'identities': (identities, 'ReIDDataSample', 2),
    'segmentation': (segmentation, 'SegDataSample', 1),
    'one label': (lambda: classification(gt_label=2), 'DataSample', 1),
    'several labels': (lambda: classification(gt_label=[0, 2]), 'DataSample', 1),
    'scores': (lambda: classification(gt_score=np.array([0.1, 0.9], np.float32)), 'DataSample', 1),
    'several tasks': (several_tasks, 'MultiTaskDataSample', 1),
}


def assert_same(a: object, b: object) -> None:
    assert type(a) is type(b)
    if isinstance(a, (torch.Tensor, np.ndarray)):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert bool((a == b).all())
    elif isinstance(a, BaseDataElement):
        assert_same(dict(a.all_items()), dict(b.all_items()))
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    elif hasattr(a, '__dict__'):  # boxes and masks
        assert vars(a)
        assert_same(vars(a), vars(b))
    else:
        assert a == b


@pytest.mark.parametrize('name', BATCHES)
def test_a_batch_of_a_library(name, tmp_path):
    pack, sample, images = BATCHES[name]
    batch = pseudo_collate([pack(), pack()])
    assert {type(each).__name__ for each in batch['data_samples']} == {sample}
    content = {
        'iteration': 7,
        'data_batch': batch,
        'random_state': {'numpy': np.random.get_state(), 'python': random.getstate(), 'torch': torch.get_rng_state()},
        'weights': None,
        'config': 'model = dict()',
    }
    save_whole(content, tmp_path / 'iter_7.pth')
    read = read_batch(tmp_path / 'iter_7.pth')
    assert_same(read, content)
    assert image_paths(read['data_batch']) == image_paths(batch)
    assert len(tensors(read['data_batch'])) == 2 * images


def test_a_difference_is_seen():
    """Else the test above would pass for any file."""
    for one, other in (
        (torch.ones(2), torch.zeros(2)),
        (np.ones(2), np.ones(2, np.float32)),
        (BaseDataElement(x=1), BaseDataElement(x=2)),
        (BaseDataElement(metainfo={'x': [1]}), BaseDataElement(metainfo={'x': [2]})),
    ):
        with pytest.raises(AssertionError):
            assert_same(one, other)
