"""ImageNet-C, -A and -R as data sets, on a few drawn images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import DATASETS, init_default_scope

from mmext_backbones.datasets.imagenet_c import corruption_of
from mmext_backbones.datasets.imagenet_subsets import SUBSETS, subset_numbers
from mmext_backbones.utils.errors import UserError

pytest.importorskip('mmpretrain')
PIPELINE = [{'type': 'LoadImageFromFile'}, {'type': 'PackInputs'}]


def draw(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / name), np.zeros((8, 8, 3), np.uint8))


def build(kind: str, root: Path, **options: object) -> object:
    init_default_scope('mmpretrain')
    return DATASETS.build({'type': f'mmext_backbones.{kind}', 'data_root': str(root), 'pipeline': PIPELINE, **options})


def test_imagenet_c_is_all_of_its_parts(tmp_path):
    for part in ('fog/1', 'fog/5', 'snow/1', 'snow/5'):
        draw(tmp_path, f'{part}/n01/a.png', f'{part}/n02/b.png', f'{part}/n02/c.png')
    classes = {'metainfo': {'classes': ('tench', 'goldfish')}}
    dataset = build('ImageNetC', tmp_path, corruptions=['fog', 'snow'], severities=[1, 5], **classes)
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert [info['gt_label'] for info in infos] == [0, 1, 1] * 4
    parts = [corruption_of(info['img_path']) for info in infos]
    assert parts == [part for part in (('fog', 1), ('fog', 5), ('snow', 1), ('snow', 5)) for _ in range(3)]
    assert dataset.metainfo['classes'] == ('tench', 'goldfish')
    assert corruption_of(dataset[0]['data_samples'].img_path) == ('fog', 1)  # what the metric is given


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, r'lacks 75 of 75 folders, the first of them gaussian_noise/1'),
        ({'corruptions': ['fog'], 'severities': [1, 2]}, r'lacks 1 of 2 folders, the first of them fog/2'),
        ({'corruptions': ['mist']}, r"corruptions=\['mist'\]: expected some of gaussian_noise, "),
        ({'corruptions': []}, r'corruptions=\[\]: expected'),
        ({'severities': [0]}, r'severities=\[0\]: expected some of 1, 2, 3, 4, 5'),
    ],
)
def test_what_imagenet_c_lacks_is_said(options, message, tmp_path):
    if options:
        draw(tmp_path, 'fog/1/n01/a.png')
    with pytest.raises(UserError, match=message):
        build('ImageNetC', tmp_path, **options)


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        ('data/imagenet-c/fog/3/n01440764/x.JPEG', ('fog', 3)),
        ('fog/3/n01440764/x.JPEG', ('fog', 3)),
        ('fog/6/n01440764/x.JPEG', None),
        ('mist/3/n01440764/x.JPEG', None),
        ('fog/fog/3/x.JPEG', None),
        ('x.JPEG', None),
        ('', None),
    ],
)
def test_corruption_of(path, expected):
    assert corruption_of(path) == expected


def test_a_subset_has_the_labels_of_imagenet(tmp_path):
    draw(tmp_path, 'n03/x.jpg', 'n01/y.JPEG', 'n01/z.png', 'n02/w.jpeg')
    (tmp_path / 'README.txt').write_text('not a class')
    (tmp_path / 'n02' / 'notes.txt').write_text('not an image')
    dataset = build('ImageNetSubset', tmp_path, subset=[6, 11, 999])
    found = {Path(info['img_path']).name: info['gt_label'] for info in map(dataset.get_data_info, range(len(dataset)))}
    assert found == {'y.JPEG': 6, 'z.png': 6, 'w.jpeg': 11, 'x.jpg': 999}
    assert len(dataset.metainfo['classes']) == 1000
    assert int(dataset[0]['data_samples'].gt_label) == 6


def test_a_subset_that_is_not_whole(tmp_path):
    draw(tmp_path, 'n01/x.jpg')
    with pytest.raises(UserError, match=r'has 1 folders of classes, and 200 are expected'):
        build('ImageNetSubset', tmp_path, subset='imagenet_a')


@pytest.mark.parametrize(
    ('subset', 'message'),
    [('imagenet_b', "'imagenet_a' or 'imagenet_r'"), ([3, 2], 'ascending'), ([2, 2], 'ascending'), ([], 'ascending')],
)
def test_no_subset(subset, message):
    with pytest.raises(UserError, match=message):
        subset_numbers(subset)


@pytest.mark.parametrize('name', SUBSETS)
def test_numbers_are_those_of_the_releases(name):
    """timm lists the folders of both, and those of ImageNet-1K."""
    info = Path(pytest.importorskip('timm.data').__file__).parent / '_info'
    all_of_them = (info / 'imagenet_synsets.txt').read_text().split()
    folders = (info / f'{name}_synsets.txt').read_text().split()
    assert [all_of_them[number] for number in SUBSETS[name]] == sorted(folders)
    assert len(SUBSETS[name]) == 200
