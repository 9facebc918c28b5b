"""Scores of images against plain counts, and the command on a network of each task."""

import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData

from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.utils.errors import UserError
from mmext_backbones.visualization import configs, predictions
from mmext_backbones.visualization.predictions import score_image

ROOT = Path(__file__).parents[2]
BOX = [0.0, 0.0, 10.0, 10.0]
AWAY = [50.0, 50.0, 60.0, 60.0]
SHIFTED = [0.0, 2.0, 10.0, 12.0]  # IoU 80 / 120


def detection(gt: list, pred: list, ignored: list = ()) -> object:
    """Of (box, label) and (box, label, score)."""
    structures = pytest.importorskip('mmdet.structures')
    sample = structures.DetDataSample()

    def fill(entries: list) -> dict:
        boxes = torch.tensor([entry[0] for entry in entries]).reshape(-1, 4)
        return {'bboxes': boxes, 'labels': torch.tensor([entry[1] for entry in entries], dtype=torch.long)}

    sample.gt_instances = InstanceData(**fill(gt))
    sample.ignored_instances = InstanceData(**fill(list(ignored)))
    sample.pred_instances = InstanceData(**fill(pred), scores=torch.tensor([float(entry[2]) for entry in pred]))
    return sample


@pytest.mark.parametrize(
    ('gt', 'pred', 'ignored', 'value', 'detail'),
    [
        ([(BOX, 0)], [(BOX, 0, 0.9)], [], 1, '1 of 1 found, 0 false, mean IoU 1.00'),
        ([(BOX, 0)], [(BOX, 1, 0.9)], [], 0, '0 of 1 found, 1 false'),
        ([(BOX, 0)], [(BOX, 0, 0.4)], [], 0, '0 of 1 found, 0 false'),
        ([(BOX, 0)], [(SHIFTED, 0, 0.9), (BOX, 0, 0.8)], [], 2 / 3, '1 of 1 found, 1 false, mean IoU 0.67'),
        ([(BOX, 0)], [(BOX, 0, 0.8), (SHIFTED, 0, 0.9)], [], 2 / 3, '1 of 1 found, 1 false, mean IoU 0.67'),
        ([(BOX, 0), (AWAY, 0)], [(BOX, 0, 0.9)], [], 2 / 3, '1 of 2 found, 0 false, mean IoU 1.00'),
        ([(BOX, 0)], [(BOX, 0, 0.9), (AWAY, 0, 0.9)], [(AWAY, 0)], 1, '1 of 1 found, 0 false, mean IoU 1.00'),
        ([], [], [], 1, '0 of 0 found, 0 false'),
        ([], [(BOX, 0, 0.9)], [], 0, '0 of 0 found, 1 false'),
    ],
)
def test_boxes(gt, pred, ignored, value, detail):
    score = score_image(detection(gt, pred, ignored), 0.5)
    assert score.value == pytest.approx(value)
    assert score.detail.endswith(detail)


def segmentation(gt: np.ndarray, pred: np.ndarray) -> object:
    structures = pytest.importorskip('mmseg.structures')
    sample = structures.SegDataSample()
    sample.gt_sem_seg, sample.pred_sem_seg = (PixelData(data=torch.as_tensor(labels)[None]) for labels in (gt, pred))
    return sample


def test_maps_against_plain_sets():
    rng = np.random.default_rng(0)
    gt, pred = rng.integers(0, 4, (2, 12, 9))
    gt[:3] = 255
    known = gt != 255
    ious = []
    for label in range(4):
        a, b = (gt == label) & known, (pred == label) & known
        ious.append((a & b).sum() / (a | b).sum())
    score = score_image(segmentation(gt, pred), 0.5, classes=list('abcdefg'))
    assert score.value == pytest.approx(np.mean(ious))
    assert 'over 4 classes' in score.detail
    assert f'{100 * (gt == pred)[known].mean():.0f} % of the pixels' in score.detail
    assert np.isnan(score_image(segmentation(np.full_like(gt, 255), pred), 0.5, classes=list('abcd')).value)


def test_classes_and_what_has_no_truth():
    structures = pytest.importorskip('mmpretrain.structures')
    sample = structures.DataSample().set_gt_label(1).set_pred_score(torch.tensor([0.8, 0.2]))
    assert score_image(sample, 0.5).value == pytest.approx(0.2)
    with pytest.raises(UserError, match='no ground truth'):
        score_image(structures.DataSample(metainfo={'img_path': 'a.png'}).set_pred_score(torch.tensor([1.0])), 0.5)


# --------------------------------------------------------------------------------------------------------------------
# The command

BACKBONE = (
    "dict(_delete_=True, type='mmext_backbones.SwinTransformer', "
    'arch=dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)){more})'
)
CONFIGS = {
    'mmdet': f"""
_base_ = ['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py']
model = dict(
    backbone={BACKBONE.format(more='')}, neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1), test_cfg=dict(score_thr=0.0))
""",
    'mmseg': f"""
_base_ = [{str(ROOT / 'configs' / 'swin_t_upernet_160k.py')!r}]
model = dict(
    backbone={BACKBONE.format(more='')}, decode_head=dict(in_channels=[8, 16, 32, 64], channels=16),
    auxiliary_head=dict(in_channels=32, channels=16))
""",
    'mmpretrain': f"""
_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py']
model = dict(backbone={BACKBONE.format(more=', out_indices=(3,)')}, head=dict(in_channels=64))
""",
}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'set', size=64, num_train=2, num_val=6)


@pytest.fixture
def draw(shapes, tmp_path, monkeypatch):
    """Runs the command with random weights; the scores of the pictures, and the sheet."""
    monkeypatch.setattr(configs, 'make_default_shapes', lambda: shapes)
    main = runpy.run_path(str(ROOT / 'tools' / 'visualize.py'), run_name='visualize')['main']
    kept = []
    keep = predictions._keep
    monkeypatch.setattr(predictions, '_keep', lambda *args: kept.append(keep(*args)) or kept[-1])

    def draw(library: str, *options: str):
        pytest.importorskip(library)
        config, weights = tmp_path / 'config.py', tmp_path / 'weights.pth'
        config.write_text(CONFIGS[library])
        if not weights.exists():
            args = type('Args', (), {'config': str(config), 'shapes': True, 'cfg_options': None})
            torch.manual_seed(0)
            torch.save({'state_dict': MODELS.build(configs.open_config(args).model).state_dict()}, weights)
        out = tmp_path / 'predictions.png'
        main(['predictions', str(config), str(weights), '--shapes', '--out', str(out), *options])
        return [(index, score.value) for index, score, _ in kept.pop()], cv2.imread(str(out))

    return draw


@pytest.mark.parametrize(
    'library',
    [pytest.param('mmdet', marks=pytest.mark.slow), pytest.param('mmseg', marks=pytest.mark.slow), 'mmpretrain'],
)
def test_the_worst_come_first(library, draw, capsys):
    scores, _ = draw(library, '--number', '99', '--score-thr', '0.01')
    worst, picture = draw(library, '--number', '2', '--threshold', '0.01', '--worst')
    assert [index for index, _ in scores] == list(range(len(scores)))
    assert len(scores) >= 6
    assert [value for _, value in worst] == pytest.approx(sorted(value for _, value in scores)[:2])
    assert all(dict(scores)[index] == pytest.approx(value) for index, value in worst)
    width = 400 if library == 'mmpretrain' else 2 * 400 + 8
    least = 16 + 2 * (width + 16)
    assert picture.shape[1] > least + 300 if library == 'mmseg' else picture.shape[1] == least  # four legends
    assert f'{len(scores)} images, mean score' in capsys.readouterr().out


def test_images_are_spread_and_only_those_are_predicted(draw, capsys):
    scores, _ = draw('mmpretrain', '--number', '3')
    assert '3 images, mean score' in capsys.readouterr().out
    (first, middle, last) = (index for index, _ in scores)
    assert first == 0
    assert abs(2 * middle - last) <= 1
    assert last >= 5
    assert len(draw('mmpretrain', '--number', '9', '--worst', '--limit', '4')[0]) == 4


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--limit', '3'], '--limit goes with --worst'),
        (['--threshold', '2'], 'expected a score from 0 to 1'),
        (['--number', '-1'], 'expected 1 or more'),
    ],
)
def test_mistakes_are_explained(options, message, draw):
    with pytest.raises(UserError, match=message):
        draw('mmpretrain', *options)
