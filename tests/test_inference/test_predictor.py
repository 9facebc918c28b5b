"""Whatever a picture comes as, what a prediction says of it, and mistakes."""

import io
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
def test_a_picture_in_any_form_is_its_file(task, predictors, pictures):
    """Paths, bytes, open files, PIL's pictures, arrays and tensors of one picture give one prediction."""
    predictor, path = predictors(task), pictures[1]
    rgb = np.asarray(Image.open(path).convert('RGB'))
    expected = predictor(path)
    channels_first = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    forms = [
        str(path), path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()),
        Image.open(path), Image.fromarray(rgb), Image.fromarray(np.dstack([rgb, rgb[..., 0]])),
        rgb / 255, (rgb / 255).astype(np.float32), rgb.astype(np.float64), rgb.astype(np.int64),
        rgb.astype(np.uint16) * 257, np.dstack([rgb, rgb[..., 0]]), np.asfortranarray(rgb),
        torch.from_numpy(rgb.copy()), channels_first, channels_first / 255, channels_first.double().requires_grad_(),
    ]  # fmt: skip
    for form in forms:
        got = predictor(form)
        np.testing.assert_array_equal(got.image, rgb)
        assert_same(got, expected)


def test_grey_in_any_form(predictors, pictures):
    grey = np.asarray(Image.open(pictures[1]).convert('L'))
    expected = predictors('detection')(np.dstack([grey] * 3))
    half = torch.from_numpy(grey.copy())
    forms = [grey, grey[..., None], grey / 255, half, half[None], Image.fromarray(grey), grey.astype(np.uint16) << 8]
    forms += [Image.fromarray(grey.astype(np.uint16) << 8), Image.fromarray(grey.astype(np.float32))]
    for form in forms:
        assert_same(predictors('detection')(form), expected)
    assert predictors('detection')(grey > np.median(grey)).image.max() == 255
    palette = Image.open(pictures[1]).convert('P')
    np.testing.assert_array_equal(predictors('detection')(palette).image, np.asarray(palette.convert('RGB')))


def test_a_picture_of_pil_is_turned_as_its_camera_notes(predictors, pictures):
    picture = Image.open(pictures[0]).convert('RGB').crop((0, 0, 64, 40))
    noted = picture.copy()
    noted.getexif()[0x0112] = 6
    assert_same(predictors('detection')(noted), predictors('detection')(picture.transpose(Image.Transpose.ROTATE_270)))


def test_a_picture_that_cannot_be_read_among_others(predictors, pictures):
    """Its error stands in its place, and the others are predicted; in batches, too."""
    found = list(predictors('detection').stream_readable([pictures[0], b'junk', b'', pictures[1], pictures[2]], 2))
    assert [isinstance(one, ImageError) for one in found] == [False, True, True, False, False]
    with pytest.raises(ImageError, match='image of 4 bytes'):
        predictors('detection').predict([pictures[0], b'junk'])
    with pytest.raises(ValueError, match='batch_size=0'):
        predictors('detection').predict([pictures[0]], batch_size=0)


@pytest.mark.parametrize('task', TASKS)
def test_some_classes_only(task, made, predictors, pictures):
    every = predictors(task)(pictures[0])
    number = int(every.labels[1]) if task != 'segmentation' else every.present()[0][0]
    for name in (every.classes[number].upper(), number, str(number)):
        some = Predictor(*made(task), device='cpu', only=[name])(pictures[0])
        if task == 'segmentation':
            np.testing.assert_array_equal(some.segmentation, np.where(every.segmentation == number, number, -1))
            assert some.shares() == {every.classes[number]: every.shares()[every.classes[number]]}
            assert every.classes[number] in some.summary()
        else:
            assert set(some.labels) == {number}
            np.testing.assert_array_equal(some.scores, every.scores[every.labels == number])
        assert some.drawn().shape[2] == 3


def test_objects_cut_out(predictors, pictures):
    got = predictors('detection')(pictures[0])
    crops = got.crops(threshold=0.0)
    assert [label for label, _ in crops] == [
        label for label, box in zip(got.labels, got.boxes, strict=True) if (box[2:] > box[:2]).all()
    ]
    x1, y1 = np.floor(got.boxes[0, :2]).astype(int)
    h, w = crops[0][1].shape[:2]
    np.testing.assert_array_equal(crops[0][1], got.image[y1 : y1 + h, x1 : x1 + w])
    assert got.boxes[0, 3] - 1 <= y1 + h <= got.boxes[0, 3] + 1
    assert got.crops(threshold=1.0) == []


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
        runs = values['map']
        np.testing.assert_array_equal(
            np.repeat(runs['labels'], runs['lengths']).reshape(runs['size']), got.segmentation
        )
        assert len(runs['lengths']) < got.segmentation.size
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
    ('image', 'message'),
    [
        (np.zeros((0, 4, 3), np.uint8), r'expected an array \[H, W, 3\]'),
        (np.zeros((4, 4, 2), np.uint8), r'expected an array \[H, W, 3\]'),
        (np.zeros(4, np.uint8), r'expected an array \[H, W, 3\]'),
        (np.zeros((3, 9, 9), np.uint8), r'channels come first.*transpose\(1, 2, 0\)'),
        (np.full((4, 4, 3), np.nan), '0 to 255, or 0 to 1'),
        (np.full((4, 4, 3), -1.5), 'from -1.5 to -1.5: expected 0 to 255'),
        (np.full((4, 4, 3), 256), '0 to 255, or 0 to 1'),
        (np.full((4, 4, 3), 'a'), 'expected integers or floating point'),
        (torch.zeros(2, 3, 4, 4), r'is a batch: predict\(list\(tensor\)\)'),
        (b'junk', 'image of 4 bytes'),
        ('https://example.org/a.png', 'addresses are not fetched'),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else type(value).__name__,
)
def test_pictures_in_memory_that_are_none(image, message, predictors):
    with pytest.raises(ImageError, match=message):
        predictors('detection')(image)


@pytest.mark.parametrize(
    'image', [None, 3, {'img': 1}, ['a.png'], io.StringIO('a.png')], ids=lambda value: type(value).__name__
)
def test_what_is_no_picture_at_all(image, predictors):
    with pytest.raises(TypeError, match='image: expected a path, bytes, a PIL image, an array or a tensor, not'):
        predictors('detection')(image)


@pytest.mark.parametrize('image', ['a.png', Path('a.png'), b'x', np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4)])
def test_one_picture_where_several_are_expected(image, predictors):
    with pytest.raises(TypeError, match=r'expected several, and this is one: predict\(\[image\]\)'):
        predictors('detection').predict(image)


def test_classes_that_the_model_does_not_know(made):
    with pytest.raises(UserError, match=r"class 'circl': the model has none.*Did you mean 'circle'"):
        Predictor(*made('detection'), device='cpu', only=['star', 'circl'])
    for only in (['99'], [-1], ['']):
        with pytest.raises(UserError, match='its numbers are 0 to'):
            Predictor(*made('detection'), device='cpu', only=only)


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
    with pytest.warns(UserWarning, match=r'1 tensor without a place in this model.*extra.weight'):
        Predictor(config, tmp_path / 'more.pth', device='cpu')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        Predictor(config, weights, device='cpu')
    assert not [one for one in caught if 'without a place' in str(one.message)]


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
