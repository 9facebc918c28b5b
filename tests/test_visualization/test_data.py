"""What the model is given: the pixels are those of the file, and what is drawn and told of them is right."""

import copy
import functools
import runpy
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from mmext_backbones.config.files import load_config
from mmext_backbones.datasets.shapes.config import use_shapes
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.utils.errors import UserError
from mmext_backbones.visualization import configs
from mmext_backbones.visualization.data import (
    describe_input,
    fit_annotations,
    hatch,
    model_inputs,
    to_picture,
    valid_size,
)

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'mmdet': 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
    'mmseg': 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py',
    'mmpretrain': 'mmpretrain::resnet/resnet18_8xb32_in1k.py',
}
SIZE = (48, 64)


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'set', size=SIZE, num_train=6, num_val=3)


@functools.cache
def config_of(library: str) -> Config:
    return load_config(CONFIGS[library])


def inputs_of(library: str, shapes: Path, number: int = 4, repeat: int = 1, **preprocessor):
    """Samples after the config's own preprocessor, which is built without its model."""
    pytest.importorskip(library)
    cfg = copy.deepcopy(config_of(library))
    use_shapes(cfg, shapes, size=64, batch_size=2)
    cfg.train_dataloader.dataset.pipeline[-3:-1] = []  # neither resized nor flipped
    init_default_scope(library)
    settings = {**(cfg.model.get('data_preprocessor') or cfg.data_preprocessor), **preprocessor}
    settings.setdefault('type', 'ClsDataPreprocessor')
    module = MODELS.build(settings)
    cfg.train_dataloader.setdefault(
        'collate_fn', {'type': 'default_collate' if library == 'mmpretrain' else 'pseudo_collate'}
    )
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    return loader, module, list(model_inputs(loader, module, number, repeat=repeat, training=True))


@pytest.mark.parametrize(
    ('library', 'rgb'),
    [
        pytest.param(library, rgb, id=f'{library}-{"RGB" if rgb else "BGR"}', marks=marks)
        for rgb, marks in ((True, []), (False, pytest.mark.slow))
        for library in CONFIGS
    ],
)
def test_undoing_the_normalisation_gives_the_file(library, rgb, shapes):
    padding = {'mmdet': {'pad_size_divisor': 32}, 'mmseg': {'size': (64, 96)}, 'mmpretrain': {'pad_size_divisor': 32}}
    swap = {'to_rgb' if library == 'mmpretrain' else 'bgr_to_rgb': rgb}
    loader, preprocessor, found = inputs_of(library, shapes, **padding[library], **swap)
    assert len(found) == 4
    for index, _, image, sample in found:
        file = cv2.imread(loader.dataset.get_data_info(index)['img_path'])[..., ::-1]
        h, w = file.shape[:2]
        picture = to_picture(image, preprocessor)
        assert image.min() < -0.5  # it is normalised
        assert picture.shape[:2] == tuple(image.shape[1:]) != (h, w)
        assert np.abs(picture[:h, :w].astype(int) - file).max() <= 1
        if library != 'mmpretrain':  # which does not say what it was
            assert valid_size(image, sample) == (h, w)


def test_repeated_samples_are_the_same_images(shapes):
    _, _, found = inputs_of('mmdet', shapes, number=3, repeat=2)
    order = [(index, time) for index, time, *_ in found]
    first = [index for index, time in order if time == 0]
    assert len(first) == len(set(first)) == 3
    assert sorted(order) == sorted((index, time) for index in first for time in (0, 1))


def test_annotations_follow_the_padding():
    structures = pytest.importorskip('mmdet.structures')
    sample = structures.DetDataSample()
    masks = torch.ones(2, 20, 30, dtype=torch.bool)
    sample.gt_instances = InstanceData(masks=masks, labels=torch.tensor([0, 0]))
    sample.gt_sem_seg = PixelData(sem_seg=torch.ones(1, 20, 30, dtype=torch.long))
    fitted = fit_annotations(sample, 32, 32)
    assert fitted.gt_instances.masks.shape == (2, 32, 32)
    assert fitted.gt_instances.masks.sum() == masks.sum()
    assert fitted.gt_sem_seg.sem_seg[0, 19, 29] == 1
    assert fitted.gt_sem_seg.sem_seg[0, 20, 29] == fitted.gt_sem_seg.sem_seg[0, 19, 30] == 255
    assert sample.gt_instances.masks.shape == (2, 20, 30)


def test_only_padding_is_hatched():
    tile = np.full((100, 200, 3), 128, np.uint8)
    marked = hatch(tile, (1.0, 0.5))
    assert (marked[:, :98] == 128).all()
    assert 0.1 < (marked[:, 102:] != 128).any(-1).mean() < 0.6
    assert (hatch(tile, (1.0, 1.0)) == tile).all()


def test_a_sample_is_described():
    structures = pytest.importorskip('mmdet.structures')
    sample = structures.DetDataSample(
        metainfo={
            'img_path': 'a/b/image.jpg', 'ori_shape': (100, 200), 'img_shape': (150, 300), 'scale_factor': (1.5, 1.5),
            'flip': True, 'flip_direction': 'horizontal',
        }
    )  # fmt: skip
    sample.gt_instances = InstanceData(labels=torch.tensor([1, 0, 1]))
    sample.ignored_instances = InstanceData(labels=torch.tensor([0]))
    assert describe_input(7, torch.zeros(3, 160, 320), sample, {'classes': ('cat', 'dog')}) == [
        'image.jpg (no. 7)',
        '200 x 100 -> 300 x 150, scale 1.5, flip horizontal, padded to 320 x 160',
        '1 cat, 2 dog, 1 ignored',
    ]


def test_mixed_classes_are_told():
    structures = pytest.importorskip('mmpretrain.structures')
    sample = structures.DataSample().set_gt_label(1).set_gt_score(torch.tensor([0.0, 0.7, 0.3]))
    assert describe_input(0, torch.zeros(3, 8, 8), sample, {'classes': ('a', 'b', 'c')})[-1] == '0.70 b, 0.30 c'


# --------------------------------------------------------------------------------------------------------------------
# The command


@pytest.fixture
def draw(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(configs, 'make_default_shapes', lambda: shapes)
    main = runpy.run_path(str(ROOT / 'tools' / 'visualize.py'), run_name='visualize')['main']

    def draw(config: str, *options: str) -> np.ndarray:
        out = tmp_path / 'data.png'
        main(['data', config, '--shapes', '--out', str(out), *options])
        return cv2.imread(str(out))

    return draw


@pytest.mark.parametrize(
    ('library', 'split', 'options', 'grid'),
    [
        ('mmdet', 'train', ['--number', '6'], (2, 4)),
        pytest.param('mmseg', 'train', ['--number', '2', '--repeat', '3'], (2, 3), marks=pytest.mark.slow),
        pytest.param('mmpretrain', 'val', ['--number', '2'], (1, 2), marks=pytest.mark.slow),
    ],
)
def test_a_picture_of_each_task(library, split, options, grid, draw):
    pytest.importorskip(library)
    picture = draw(CONFIGS[library], '--split', split, *options)
    rows, columns = grid
    least = 16 + columns * (420 + 16)
    # a map of classes has a legend
    assert picture.shape[1] > least + columns * 70 if library == 'mmseg' else picture.shape[1] == least
    assert rows * 300 < picture.shape[0] < rows * 520 + 60


def test_epochs_of_a_sample_differ_by_their_augmentation_alone(draw, monkeypatch):
    pytest.importorskip('mmpretrain')
    flip = {'train_dataloader.dataset.pipeline.2.prob': 0.5}
    texts = []
    data = __import__('mmext_backbones.visualization.data', fromlist=['data'])
    monkeypatch.setattr(data, 'describe_input', lambda *args: texts.append(describe_input(*args)) or texts[-1])
    draw(
        CONFIGS['mmpretrain'], '--number', '1', '--repeat', '8', '--cfg-options', *(f'{k}={v}' for k, v in flip.items())
    )
    assert len({text[0] for text in texts}) == 1
    assert {'flip horizontal' in text[1] for text in texts} == {True, False}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--number', '0'], 'expected 1 or more'),
        (['--out', 'data.gif'], 'expected a picture'),
        (['--cfg-options', 'val_dataloader=None', '--split', 'val'], 'has no val_dataloader'),
        (['--cfg-options', 'visualizer.type=Visualizer'], 'draws no samples'),
    ],
)
def test_mistakes_are_explained(options, message, draw):
    pytest.importorskip('mmdet')
    with pytest.raises(UserError, match=message):
        draw(CONFIGS['mmdet'], *options)


def test_inputs_that_are_no_images():
    loader = types.SimpleNamespace(
        batch_sampler=[[0]], dataset=[0], collate_fn=lambda batch: {'inputs': torch.zeros(1, 8)}
    )
    with pytest.raises(UserError, match='cannot be drawn'):
        list(model_inputs(loader, lambda data, training: data, 1, training=True))
