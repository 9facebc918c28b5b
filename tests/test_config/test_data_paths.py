"""Paths are asked for where a step reads them, and nowhere else."""

import pytest
from mmengine.config import Config

from mmext_backbones.config.data_paths import check_data
from mmext_backbones.utils.errors import UserError

LOAD = {'type': 'LoadImageFromFile'}


def missing(dataset, scope='mmdet', evaluator=None):
    """What a check says of one data set; an empty text for nothing."""
    try:
        cfg = {'default_scope': scope, 'val_dataloader': {'dataset': dataset}, 'val_evaluator': evaluator}
        check_data(Config(cfg), ('val',))
    except UserError as error:
        return str(error)
    return ''


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'img').mkdir()
    (tmp_path / 'a.json').write_text('{}')
    return str(tmp_path)


@pytest.mark.parametrize(
    ('step', 'scope', 'read'),
    [
        ({'type': 'LoadAnnotations', 'with_mask': True}, 'mmdet', False),
        ({'type': 'LoadAnnotations', 'with_seg': True}, 'mmdet', True),
        ({'type': 'LoadPanopticAnnotations'}, 'mmdet', True),
        ({'type': 'mmdet.LoadPanopticAnnotations'}, 'mmseg', True),
        ({'type': 'LoadAnnotations'}, 'mmseg', True),
        ({'type': 'mmseg.LoadAnnotations'}, 'mmdet', True),
        ({'type': 'RandomChoice', 'transforms': [[{'type': 'LoadAnnotations', 'with_seg': True}]]}, 'mmdet', True),
        ({'type': 'PackSegInputs'}, 'mmseg', False),
    ],
)
@pytest.mark.parametrize('key', ['seg', 'seg_map_path'])
def test_maps(step, scope, read, key, root):
    prefix = {'img': 'img/', key: 'maps/'}
    dataset = {'type': 'D', 'data_root': root, 'ann_file': 'a.json', 'data_prefix': prefix, 'pipeline': [LOAD, step]}
    for wrapped in (dataset, {'type': 'ConcatDataset', 'datasets': [dataset]}):
        assert ('maps' in missing(wrapped, scope)) == read


def test_what_is_asked_for(root):
    dataset = {
        'type': 'D',
        'data_root': root,
        'ann_file': 'b.json',
        'data_prefix': {'img': 'there/'},
        'pipeline': [LOAD],
    }
    assert 'b.json' in missing(dataset)
    assert 'there' in missing(dataset)
    assert 'c.json' in missing({'type': 'D'}, evaluator={'type': 'CocoMetric', 'ann_file': 'c.json'})
    assert 'nowhere' in missing({'type': 'ImageNet', 'data_root': 'nowhere'})
    assert 'nowhere' in missing({'type': 'ImageNet', 'data_root': 'nowhere', 'data_prefix': {'img': ''}})
    assert 'VOC' in missing({'type': 'VOCDataset', 'data_root': root, 'data_prefix': {'sub_data_root': 'VOC/'}})
    assert 'nowhere' in missing({'type': 'CIFAR10', 'data_root': 'nowhere', 'download': False})


@pytest.mark.parametrize(
    'dataset',
    [
        {'type': 'D', 'data_root': 's3://bucket/', 'ann_file': 'b.json'},
        {'type': 'D', 'data_root': 'nowhere/', 'ann_file': 'b.json', 'backend_args': {'backend': 'petrel'}},
        {'type': 'CIFAR10', 'data_root': 'nowhere'},
        {'type': 'mmpretrain.MNIST', 'data_root': 'nowhere'},
    ],
)
def test_what_is_elsewhere_or_fetched(dataset):
    assert missing(dataset) == ''
