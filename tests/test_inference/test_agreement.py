"""Predictions are what mmdet, mmseg, mmpretrain, timm and tools/test.py predict."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmext_backbones.engine import test as testing
from mmext_backbones.inference import Predictor

ROOT = Path(__file__).parents[2]
with_tta = pytest.mark.parametrize('tta', [pytest.param(False, marks=pytest.mark.slow), True])


def test_as_inference_detector(made, predictors, pictures):
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(*made('detection'), device='cpu')
    for path in pictures:
        expected = inference_detector(model, str(path)).pred_instances
        got = predictors('detection')(path)
        assert len(expected) > 3
        np.testing.assert_array_equal(got.boxes, expected.bboxes.numpy())
        np.testing.assert_array_equal(got.scores, expected.scores.numpy())
        np.testing.assert_array_equal(got.labels, expected.labels.numpy())
        np.testing.assert_array_equal(got.masks, expected.masks.numpy())
        assert 0.01 < got.masks.mean() < 0.9
    assert got.boxes.dtype == np.float32
    assert got.size == got.masks.shape[1:] == (64, 64)
    assert got.classes == ('circle', 'square', 'triangle', 'star', 'cross')
    assert got.seconds > 0


def test_as_the_detection_inferencer(made, predictors, pictures):
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(*made('detection'), device='cpu', show_progress=False)
    (expected,) = inferencer(str(pictures[0]), return_datasamples=True)['predictions']
    got = predictors('detection')(pictures[0])
    np.testing.assert_array_equal(got.boxes, expected.pred_instances.bboxes.numpy())
    np.testing.assert_array_equal(got.masks, expected.pred_instances.masks.numpy())


def test_as_the_segmentation_api(made, predictors, pictures):
    from mmseg.apis import inference_model, init_model

    config, weights = made('segmentation')
    cfg = Config.fromfile(config)
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline
    model = init_model(cfg, weights, device='cpu')
    for path in pictures:
        expected = inference_model(model, str(path)).pred_sem_seg.data[0].numpy()
        got = predictors('segmentation')(path)
        np.testing.assert_array_equal(got.segmentation, expected)
        assert len(np.unique(expected)) > 1
    assert got.classes[0] == 'background'
    assert sum(got.shares().values()) == pytest.approx(1)


def test_as_the_classification_inferencer(made, predictors, pictures):
    from mmpretrain.apis import ImageClassificationInferencer

    config, weights = made('classification')
    inferencer = ImageClassificationInferencer(Config.fromfile(config), pretrained=weights, device='cpu')
    for path in pictures:
        (expected,) = inferencer(str(path))
        got = predictors('classification')(path)
        order = expected['pred_scores'].argsort()[::-1][:5]
        assert got.labels.tolist() == order.tolist()
        np.testing.assert_array_equal(got.scores, expected['pred_scores'][order])
        assert len(set(got.scores)) > 1


@with_tta
def test_as_a_test_of_a_detector(tta, made, predictors, shapes_dir, pictures, tmp_path, monkeypatch):
    """With the runner's loader, batches and wrapper; the file of results is compared entry by entry."""
    monkeypatch.chdir(tmp_path)
    testing.test(*made('detection'), tta=tta, out='out.json')
    expected = json.loads((tmp_path / 'out.segm.json').read_text())
    boxes = {
        (e['image_id'], e['category_id'], e['score']): e['bbox']
        for e in json.loads((tmp_path / 'out.bbox.json').read_text())
    }
    coco = json.loads((shapes_dir / 'annotations' / 'instances_val.json').read_text())
    ids = {image['file_name']: image['id'] for image in coco['images']}
    got = [e for path in pictures for e in predictors('detection', tta)(path).to_coco(ids[path.name])]
    assert len(got) == len(expected) > 9
    key = lambda e: (e['image_id'], e['category_id'], e['score'])  # noqa: E731
    for mine, theirs in zip(sorted(got, key=key), sorted(expected, key=key), strict=True):
        assert key(mine) == key(theirs)
        assert mine['bbox'] == boxes[key(theirs)]
        assert mine['segmentation'] == theirs['segmentation']


@with_tta
def test_as_a_test_of_a_segmentor(tta, made, predictors, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    testing.test(*made('segmentation'), tta=tta, out='maps')
    for path in pictures:
        # tools/test.py numbers labels as the data set's files: from 1
        expected = np.asarray(Image.open(tmp_path / 'maps' / path.name)).astype(int) - 1
        got = predictors('segmentation', tta)(path).segmentation
        np.testing.assert_array_equal(got, expected)


def test_views_change_something(predictors, pictures):
    for task in ('detection', 'segmentation'):
        plain, merged = predictors(task)(pictures[0]), predictors(task, True)(pictures[0])
        assert predictors(task, True).tta
        different = (
            plain.segmentation != merged.segmentation
            if task == 'segmentation'
            else plain.scores[:3] != merged.scores[:3]
        )
        assert different.any()


@pytest.mark.slow  # tests/test_weights/test_classifiers.py has one as tools/test.py sees it
def test_a_published_classifier(pictures, tmp_path):
    """Under timm's names and in its layout, as timm:// brings it."""
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    theirs = timm.create_model('swin_tiny_patch4_window7_224').eval()
    with torch.no_grad():
        theirs.head.fc.weight.normal_(std=0.5)
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    predictor = Predictor(ROOT / 'configs' / 'swin_t_in1k.py', tmp_path / 'timm.pth', device='cpu')
    assert len(predictor.classes) == 1000
    got = predictor(pictures[0])
    _, packed, *_ = predictor._prepare(pictures[0])
    inputs = predictor.model.data_preprocessor({'inputs': [packed['inputs']]})['inputs']
    with torch.no_grad():
        scores, labels = theirs(inputs).softmax(1)[0].topk(5)
    assert got.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(got.scores, scores.numpy(), atol=1e-5)  # another order of sums
    assert got.scores[0] > 0.01
