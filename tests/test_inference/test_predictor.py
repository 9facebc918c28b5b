"""Whatever a picture comes as, what a prediction says of it, and mistakes."""

import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mmext_backbones.datasets.shapes.files import rle_to_mask
from mmext_backbones.engine.evaluation.tta import use_tta
from mmext_backbones.inference import ImageError, Predictor
from mmext_backbones.inference.network import class_names, read_config
from mmext_backbones.inference.prediction import category_ids, decode_mask, encode_mask
from mmext_backbones.utils.errors import UserError
from mmext_backbones.weights.safe_globals import allow_mmengine_checkpoints
from tests.test_inference.networks import assert_same

ROOT = Path(__file__).parents[2]
TASKS = ['detection', 'segmentation', 'classification']


# --------------------------------------------------------------------------------------------------------------------
# Whatever a picture comes as


@pytest.mark.parametrize('task', TASKS)
def test_an_array_is_its_file(task, predictors, pictures):
    rgb = np.ascontiguousarray(cv2.imread(str(pictures[1]))[..., ::-1])
    from_file, from_array = predictors(task)(pictures[1]), predictors(task)(rgb)
    assert_same(from_array, from_file)
    np.testing.assert_array_equal(from_file.image, rgb)
    assert not np.array_equal(predictors(task)(rgb[..., ::-1].copy()).image, rgb)


@pytest.mark.parametrize('task', TASKS)
def test_a_batch_is_its_pictures(task, predictors, pictures, tmp_path):
    """In their order, also where another size stands between them; another batch, another rounding."""
    other = tmp_path / 'wide.png'
    cv2.imwrite(str(other), cv2.imread(str(pictures[0]))[:32])
    paths = [pictures[0], pictures[1], other, pictures[2]]
    together = predictors(task).predict(paths, batch_size=3)
    assert [one.size for one in together] == [(64, 64), (64, 64), (32, 64), (64, 64)]
    for got, path in zip(together, paths, strict=True):
        alone = predictors(task)(path)
        for key in ('boxes', 'scores'):
            if getattr(alone, key) is not None:
                np.testing.assert_allclose(getattr(got, key), getattr(alone, key), atol=1e-3)
        if task == 'segmentation':
            assert (got.segmentation != alone.segmentation).mean() < 0.01
        else:
            assert got.labels.tolist() == alone.labels.tolist()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_photograph_is_turned_as_its_camera_notes(orientation, predictors, pictures, tmp_path):
    """By the config's own reader, as in a training; the turned pixels, saved without a note, are the oracle."""
    picture = Image.open(pictures[0]).convert('RGB').crop((0, 0, 64, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / 'noted.png', exif=exif)
    turns = {
        2: ['FLIP_LEFT_RIGHT'], 3: ['ROTATE_180'], 4: ['FLIP_TOP_BOTTOM'], 5: ['TRANSPOSE'],
        6: ['ROTATE_270'], 7: ['TRANSVERSE'], 8: ['ROTATE_90'],
    }  # fmt: skip
    for turn in turns.get(orientation, []):
        picture = picture.transpose(getattr(Image.Transpose, turn))
    got = predictors('detection')(tmp_path / 'noted.png')
    assert got.size == ((40, 64) if orientation < 5 else (64, 40))
    np.testing.assert_array_equal(got.image, np.asarray(picture))
    assert_same(got, predictors('detection')(np.asarray(picture)))


def test_grey_pictures_and_pictures_with_an_alpha_channel(predictors, pictures, tmp_path):
    grey = Image.open(pictures[0]).convert('L')
    grey.save(tmp_path / 'grey.png')
    Image.merge('LA', (grey, grey)).save(tmp_path / 'alpha.png')
    expected = predictors('detection')(np.asarray(grey.convert('RGB')))
    assert_same(predictors('detection')(tmp_path / 'grey.png'), expected)
    assert_same(predictors('detection')(tmp_path / 'alpha.png'), expected)


def test_predictors_of_two_libraries_side_by_side(predictors, pictures):
    for task in (*TASKS, *TASKS):
        assert predictors(task)(pictures[0]).kind == predictors(task).task == task
    assert DefaultScope.get_current_instance() is None  # nothing is left behind


def test_a_picture_without_objects(made, pictures):
    predictor = Predictor(*made('detection'), device='cpu', options={'model.test_cfg.rcnn.score_thr': 1.0})
    got = predictor(pictures[0])
    assert [got.boxes.shape, got.scores.shape, got.masks.shape] == [(0, 4), (0,), (0, 64, 64)]
    assert got.to_coco(1) == []
    assert got.summary() == 'nothing'
    assert got.drawn().shape == (512, 512, 3)


# --------------------------------------------------------------------------------------------------------------------
# Numbers and names


def test_masks_survive_run_lengths(predictors, pictures):
    got = predictors('detection')(pictures[0])
    for mask, entry in zip(got.masks, got.to_coco(7), strict=True):
        np.testing.assert_array_equal(decode_mask(entry['segmentation']), mask)
        assert entry['image_id'] == 7
    ragged = np.random.default_rng(0).random((5, 9)) < 0.5
    lengths = encode_mask(ragged)
    json.dumps(lengths)
    np.testing.assert_array_equal(decode_mask(lengths), ragged)
    assert lengths['size'] == [5, 9]
    assert rle_to_mask({'size': [2, 2], 'counts': [1, 3]}).sum() == 3  # column by column, as COCO counts


def test_categories_of_coco_have_gaps():
    from mmdet.datasets import CocoDataset

    ids = category_ids(CocoDataset.METAINFO['classes'])
    assert len(ids) == 80
    assert [ids[CocoDataset.METAINFO['classes'].index(name)] for name in ('person', 'stop sign', 'toothbrush')] == [
        1, 13, 90,
    ]  # fmt: skip
    assert category_ids(('a', 'b')) == [1, 2]


@pytest.mark.parametrize('task', TASKS)
def test_as_a_dict(task, predictors, pictures):
    got = predictors(task)(pictures[0])
    values = json.loads(json.dumps(got.to_dict()))
    assert values['kind'] == task
    assert values['size'] == [64, 64]
    if task == 'segmentation':
        assert values['shares'] == got.shares()
        with pytest.raises(ValueError, match="'segmentation': expected 'detection'"):
            got.to_coco(1)
        return
    entries = values['objects' if task == 'detection' else 'top']
    assert [entry['class'] for entry in entries] == [got.classes[label] for label in got.labels]
    few = got.to_dict(threshold=float(np.median(got.scores)))
    assert 0 < len(few['objects' if task == 'detection' else 'top']) < len(entries)


def test_classes_come_from_the_weights_then_from_the_config(made, tmp_path):
    config, weights = made('detection')
    content = torch.load(weights, weights_only=True)
    content['meta'] = {'CLASSES': ('a', 'b', 'c', 'd', 'e'), 'PALETTE': [[i, i, i] for i in range(5)]}
    torch.save(content, tmp_path / 'old.pth')
    old = Predictor(config, tmp_path / 'old.pth', device='cpu')
    assert old.classes == tuple('abcde')
    assert old.palette[2] == (2, 2, 2)
    torch.save(content['state_dict'], tmp_path / 'bare.pth')
    assert Predictor(config, tmp_path / 'bare.pth', device='cpu').classes[3] == 'star'


@pytest.mark.parametrize(
    ('name', 'number', 'first', 'coloured'),
    [('maskrcnn_1x', 80, 'person', 80), ('upernet_160k', 150, 'wall', 150), ('in1k', 1000, 'tench, Tinca tinca', 0)],
)
def test_classes_of_the_known_data_sets(name, number, first, coloured):
    """Where weights are bare, as published ones are."""
    cfg = read_config(ROOT / 'configs' / f'swin_t_{name}.py', shapes=False, options=None)
    pytest.importorskip(cfg.default_scope)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        classes, palette = class_names(cfg, {})
    assert (len(classes), classes[0], len(palette)) == (number, first, coloured)


def test_the_config_of_a_test_with_views(made, predictors, pictures, tmp_path):
    """Of the wrapped model, as a test writes it beside its log: it predicts the views, and says so."""
    config, weights = made('segmentation')
    cfg = Config.fromfile(config)
    use_tta(cfg)
    cfg.dump(tmp_path / 'left.py')
    predictor = Predictor(tmp_path / 'left.py', weights, device='cpu')
    assert predictor.tta
    assert_same(predictor(pictures[0]), predictors('segmentation', True)(pictures[0]))


# --------------------------------------------------------------------------------------------------------------------
# Mistakes


def test_pictures_that_cannot_be_read(predictors, pictures, tmp_path):
    (tmp_path / 'junk.png').write_text('junk')
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'cut.png').write_bytes(pictures[0].read_bytes()[:500])
    messages = {
        'junk.png': 'damaged or no image',
        'empty.jpg': 'empty file',
        'cut.png': 'cut short',
        'no.png': 'no such file',
    }
    for name, message in messages.items():
        with pytest.raises(ImageError, match=rf'{name}.*{message}'):
            predictors('detection')(tmp_path / name)
    assert len(predictors('detection')(pictures[0]).scores)  # and it goes on


@pytest.mark.parametrize(
    'array', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_are_no_pictures(array, predictors):
    with pytest.raises(ValueError, match=r'expected an array \[H, W, 3\] of uint8'):
        predictors('detection')(array)


def test_weights_of_another_task(made):
    for task, other in (
        ('detection', 'segmentation'),
        ('segmentation', 'classification'),
        ('classification', 'detection'),
    ):
        with pytest.raises(UserError, match=f'does not fit this model.*model for {other}, not {task}'):
            Predictor(made(task)[0], made(other)[1], device='cpu')


def test_weights_that_are_none(made, tmp_path):
    config, weights = made('detection')
    with pytest.raises(UserError, match='there is no such file'):
        Predictor(config, tmp_path / 'no.pth', device='cpu')
    (tmp_path / 'cut.pth').write_bytes(Path(weights).read_bytes()[:2000])
    with pytest.raises(UserError, match='cannot be read'):
        Predictor(config, tmp_path / 'cut.pth', device='cpu')
    with pytest.raises(UserError, match='no such scheme'):
        Predictor(config, 'tim://swin', device='cpu')
    allow_mmengine_checkpoints()
    content = torch.load(weights, weights_only=True)
    content['state_dict'].popitem()
    torch.save(content, tmp_path / 'less.pth')
    with pytest.raises(UserError, match=r'1 of .* tensors are missing'):
        Predictor(config, tmp_path / 'less.pth', device='cpu')


def test_weights_with_more_than_the_model_has(made, tmp_path):
    config, weights = made('detection')
    content = torch.load(weights, weights_only=True)
    content['state_dict']['extra.weight'] = torch.zeros(2)
    torch.save(content, tmp_path / 'more.pth')
    with pytest.warns(UserWarning, match=r'1 tensors have no place in this model.*extra.weight'):
        Predictor(config, tmp_path / 'more.pth', device='cpu')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        Predictor(config, weights, device='cpu')
    assert not [one for one in caught if 'no place' in str(one.message)]


def test_devices_that_are_not_there(made):
    with pytest.raises(UserError, match='expected cpu, cuda'):
        Predictor(*made('detection'), device='gpu')
    count = torch.cuda.device_count()
    with pytest.raises(UserError, match=r"device 'cuda:99': torch sees (no GPU|\d+ GPU)"):
        Predictor(*made('detection'), device='cuda:99')
    expected = 'cuda' if count else 'cpu'
    assert Predictor(*made('detection')).device.type == expected


def test_configs_that_cannot_predict(made, tmp_path):
    config, weights = made('detection')
    text = Path(config).read_text()
    for name, more, message in (
        ('scope', 'default_scope = "mmaction"', "default_scope='mmaction', and only configs of"),
        ('loader', 'test_dataloader = None', 'has no test_dataloader'),
        ('model', 'model = None', 'has no model'),
    ):
        (tmp_path / f'{name}.py').write_text(f'{text}\n{more}\n')
        with pytest.raises(UserError, match=message):
            Predictor(tmp_path / f'{name}.py', weights, device='cpu')
    with pytest.raises(UserError, match='begins with PackDetInputs: expected LoadImageFromFile'):
        Predictor(
            config, weights, options={'test_dataloader.dataset.pipeline': [{'type': 'PackDetInputs'}]}, device='cpu'
        )
