"""The pictures: curves that survive a resume, and predictions for each of the three tasks."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.structures import InstanceData, PixelData

from mmext_backbones.drawing.samples import GAP, draw_sides, resize_sample
from mmext_backbones.engine import picture_hooks
from mmext_backbones.engine.picture_hooks import CurvesHook, PredictionsHook
from mmext_backbones.registry import HOOKS
from mmext_backbones.utils import attempts


def runner_at(work_dir: Path, iteration: int = 0, load_from: str | None = None, losses: int = 0) -> SimpleNamespace:
    scalars = {'train/loss': HistoryBuffer(), 'train/loss_cls': HistoryBuffer(), 'train/lr': HistoryBuffer()}
    for i in range(losses):
        for buffer in scalars.values():
            buffer.update(float(i))
    hub = SimpleNamespace(log_scalars=scalars)
    return SimpleNamespace(work_dir=str(work_dir), iter=iteration, _load_from=load_from, message_hub=hub)


def train(hook: CurvesHook, runner: SimpleNamespace, stop: int) -> None:
    """What a runner does from its iteration to `stop`; the loss is the number of the iteration."""
    hook.before_train(runner)
    for step in range(runner.iter, stop):
        for buffer in runner.message_hub.log_scalars.values():
            buffer.update(float(step))
        runner.iter = step
        hook.after_train_iter(runner, step)
        runner.iter = step + 1
    hook.after_val_epoch(runner, {'coco/bbox_mAP': stop / 1000, 'coco/bbox_mAP_s': 0.1})
    hook.after_train(runner)


def test_hooks_are_registered():
    assert HOOKS.get('mmext_backbones.CurvesHook') is CurvesHook
    assert HOOKS.get('mmext_backbones.PredictionsHook') is PredictionsHook


def test_curves_are_means_over_the_interval(tmp_path):
    hook = CurvesHook(interval=10)
    train(hook, runner_at(tmp_path), 30)
    assert hook.losses == {key: [(10, 4.5), (20, 14.5), (30, 24.5)] for key in ('loss', 'loss_cls')}
    assert hook.metrics['coco/bbox_mAP'] == [(30, 0.03)]
    assert cv2.imread(str(tmp_path / 'curves.png')).shape[0] > 300


def test_the_same_points_are_drawn_once(tmp_path, monkeypatch):
    """A validation at the end of a training, and the end itself."""
    drawn = []
    monkeypatch.setattr(picture_hooks.CurvesHook, '_draw', lambda self, path, title: drawn.append(path))
    hook = CurvesHook(interval=10)
    train(hook, runner_at(tmp_path), 30)
    assert drawn == [tmp_path / 'curves.png']
    train(hook, runner_at(tmp_path, iteration=30), 40)
    assert len(drawn) == 2


def test_metrics_are_numbers_of_any_kind(tmp_path, monkeypatch):
    """mmseg's are of numpy, in single precision."""
    runner, metrics = runner_at(tmp_path, iteration=3), {'mIoU': np.float32(12.5), 'note': 'text'}
    curves = CurvesHook()
    curves.after_val_epoch(runner, metrics)
    assert curves.metrics == {'mIoU': [(3, 12.5)]}
    titles = []
    monkeypatch.setattr(picture_hooks, 'sheet', lambda tiles, title, columns: titles.append(title) or tiles[0])
    pictures = PredictionsHook()
    pictures.tiles = [np.zeros((8, 8, 3), np.uint8)]
    pictures.after_val_epoch(runner, metrics)
    assert titles[0].endswith('ground truth and prediction, mIoU 12.500')


@pytest.mark.parametrize('same_dir', [True, False])
def test_curves_go_on_after_a_resume(tmp_path, same_dir):
    first, second = tmp_path / 'a', tmp_path / ('a' if same_dir else 'b')
    first.mkdir()
    second.mkdir(exist_ok=True)
    train(CurvesHook(interval=10), runner_at(first), 40)
    hook = CurvesHook(interval=5)
    train(hook, runner_at(second, iteration=20, load_from=str(first / 'iter_20.pth')), 60)
    assert hook.losses['loss'] == [(step, step - 5.5) for step in range(10, 61, 10)]
    assert hook.metrics['coco/bbox_mAP'] == [(60, 0.06)]  # the validation at 40 came after the checkpoint
    assert json.loads((second / 'curves.json').read_text())['interval'] == 10


def test_curves_start_anew_without_a_resume(tmp_path):
    train(CurvesHook(interval=10), runner_at(tmp_path), 40)
    hook = CurvesHook(interval=10)
    train(hook, runner_at(tmp_path), 20)
    assert [step for step, _ in hook.losses['loss']] == [10, 20]


def test_curves_stay_small(tmp_path):
    hook = CurvesHook(interval=1, max_points=50)
    train(hook, runner_at(tmp_path), 1000)
    assert len(hook.losses['loss']) <= 50
    steps = [step for step, _ in hook.losses['loss']]
    assert steps[-1] > 900
    assert steps == sorted(steps)


# --------------------------------------------------------------------------------------------------------------------
# Predictions


def instances(H: int, W: int, scores: list[float] | None = None) -> InstanceData:
    masks = torch.zeros(2, H, W, dtype=torch.bool)
    masks[:, 8:24, 4:20] = True
    data = InstanceData(bboxes=torch.tensor([[4.0, 8.0, 20.0, 24.0]] * 2), labels=torch.tensor([0, 1]), masks=masks)
    if scores is not None:
        data.scores = torch.tensor(scores)
    return data


def detection_sample(path: str, H: int, W: int) -> object:
    structures = pytest.importorskip('mmdet.structures')
    sample = structures.DetDataSample(metainfo={'img_path': path})
    sample.gt_instances, sample.pred_instances = instances(H, W), instances(H, W, [0.9, 0.1])
    return sample


def segmentation_sample(path: str, H: int, W: int) -> object:
    structures = pytest.importorskip('mmseg.structures')
    sample = structures.SegDataSample(metainfo={'img_path': path})
    sample.gt_sem_seg = PixelData(data=torch.ones(1, H, W, dtype=torch.long))
    sample.pred_sem_seg = PixelData(data=torch.zeros(1, H, W, dtype=torch.long))
    return sample


def classification_sample(path: str, H: int, W: int) -> object:
    structures = pytest.importorskip('mmpretrain.structures')
    sample = structures.DataSample(metainfo={'img_path': path})
    return sample.set_gt_label(1).set_pred_label(0).set_pred_score(torch.tensor([0.8, 0.2]))


def visualizer(library: str, name: str) -> object:
    module = pytest.importorskip(f'{library}.visualization')
    return getattr(module, name).get_instance(f'test_{library}')


@pytest.mark.parametrize(
    ('library', 'drawer', 'make', 'width'),
    [
        ('mmdet', 'DetLocalVisualizer', detection_sample, 2 * 200),
        ('mmseg', 'SegLocalVisualizer', segmentation_sample, 2 * 305),  # with two legends
        ('mmpretrain', 'UniversalVisualizer', classification_sample, 200),
    ],
    ids=['detection', 'segmentation', 'classification'],
)
def test_predictions_are_drawn_large(library, drawer, make, width, tmp_path):
    H, W = 32, 40
    path = str(tmp_path / 'image.png')
    cv2.imwrite(path, np.full((H, W, 3), 200, np.uint8))
    metainfo = {'classes': ('one', 'two'), 'palette': [(255, 0, 0), (0, 255, 0)]}
    loader = SimpleNamespace(dataset=SimpleNamespace(metainfo=metainfo))
    loader = type('Loader', (), {'dataset': loader.dataset, '__len__': lambda self: 5})()
    runner = SimpleNamespace(
        work_dir=str(tmp_path), iter=7, visualizer=visualizer(library, drawer), val_dataloader=loader,
        test_dataloader=loader, cfg=Config(),
    )  # fmt: skip
    hook = PredictionsHook(num_images=3, edge=200, show_dir=str(tmp_path / 'all'))
    sample = make(path, H, W)
    before = str(sample)
    hook.before_val_epoch(runner)
    for index in range(5):
        hook.after_val_iter(runner, index, outputs=[sample])
    hook.after_val_epoch(runner, {'score': 0.5})
    assert len(hook.tiles) == 3
    assert hook.tiles[0].shape[0] == 160
    assert hook.tiles[0].shape[1] in range(width, width + 20)
    assert cv2.imread(str(tmp_path / 'predictions.png')) is not None
    assert str(sample) == before  # evaluation still needs it as it was
    hook.after_test_iter(runner, 0, outputs=[sample])
    assert cv2.imread(str(tmp_path / 'all' / 'image.png')).shape[0] == 160


def test_a_map_is_tinted_and_has_a_legend(tmp_path):
    """By our drawing, in which black is a tint as any other; what has no label is named so."""
    H, W = 32, 40
    path = str(tmp_path / 'image.png')
    cv2.imwrite(path, np.full((H, W, 3), 200, np.uint8))
    sample = segmentation_sample(path, H, W)
    sample.gt_sem_seg.data[..., :4, :] = 255
    metainfo = {'classes': ('one', 'two'), 'palette': [(0, 0, 0), (0, 255, 0)]}
    both = draw_sides(visualizer('mmseg', 'SegLocalVisualizer'), metainfo, sample, 200, 0.5)
    width = (both.shape[1] - GAP // 2) // 2
    truth, predicted = both[:, :width], both[:, -width:]
    assert width > 280  # the legends
    assert truth[2, 100].tolist() == [200, 200, 200]
    assert truth[100, 100].tolist() == [90, 230, 90]  # 45 % of the image, 55 % of the colour
    assert predicted[100, 100].tolist() == [90, 90, 90]


def test_a_picture_without_boxes_says_so(tmp_path):
    H, W = 32, 40
    path = str(tmp_path / 'image.png')
    cv2.imwrite(path, np.full((H, W, 3), 200, np.uint8))
    drawer, metainfo = visualizer('mmdet', 'DetLocalVisualizer'), {'classes': ('one', 'two')}
    sample = detection_sample(path, H, W)
    sides = [draw_sides(drawer, metainfo, sample, 200, threshold) for threshold in (0.5, 0.99, 0.0)]
    corners = [side[2:10, 200 + GAP // 2 + 2].reshape(-1, 3) for side in sides]
    assert [bool((corner < 60).all()) for corner in corners] == [False, True, False]
    np.testing.assert_array_equal(sides[0][:, :200], sides[1][:, :200])  # the truth has no such note


def test_boxes_masks_and_maps_follow_the_image():
    H, W = 32, 40
    sample = resize_sample(detection_sample('x.png', H, W), (H, W), (4 * H, 3 * W), 0.5)
    assert sample.pred_instances.scores.tolist() == pytest.approx([0.9])
    assert sample.pred_instances.bboxes.tolist() == [[12.0, 32.0, 60.0, 96.0]]
    assert sample.gt_instances.masks.shape == (2, 4 * H, 3 * W)
    rows, columns = np.nonzero(sample.gt_instances.masks[0].numpy())
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (32, 96, 12, 60)
    seg = resize_sample(segmentation_sample('x.png', H, W), (H, W), (4 * H, 3 * W), 0.5)
    assert seg.gt_sem_seg.data.shape == (1, 4 * H, 3 * W)
    assert seg.gt_sem_seg.data.dtype == torch.long


def test_samples_without_a_drawer_are_left_alone(tmp_path):
    from mmengine.visualization import Visualizer

    loader = type('Loader', (), {'__len__': lambda self: 1})()
    runner = SimpleNamespace(work_dir=str(tmp_path), iter=1, visualizer=Visualizer('plain'), val_dataloader=loader)
    hook = PredictionsHook()
    hook.after_val_iter(runner, 0, outputs=[SimpleNamespace(img_path='x.png')])
    hook.after_val_epoch(runner, {})
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------------------
# What cannot be drawn ends nothing


def drawing_runner(tmp_path, library='mmseg', drawer='SegLocalVisualizer'):
    metainfo = {'classes': ('one', 'two'), 'palette': [(255, 0, 0), (0, 255, 0)]}
    loader = type('Loader', (), {'dataset': SimpleNamespace(metainfo=metainfo), '__len__': lambda self: 1})()
    return SimpleNamespace(
        work_dir=str(tmp_path), iter=7, visualizer=visualizer(library, drawer), val_dataloader=loader,
        test_dataloader=loader,
    )  # fmt: skip


def drawn(tmp_path, sample, inputs=None, **options) -> list[np.ndarray]:
    """The tiles of a validation of one batch."""
    hook = PredictionsHook(num_images=1, edge=100, **options)
    runner = drawing_runner(tmp_path)
    batch = {'inputs': [inputs]} if inputs is not None else {}
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0, data_batch=batch, outputs=[sample])
    tiles = list(hook.tiles)
    hook.after_val_epoch(runner, {'score': 0.5})
    return tiles


@pytest.mark.parametrize('bands', [1, 2, 3, 4, 12])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
@pytest.mark.parametrize('file', [True, False])
def test_images_that_are_no_files_of_pictures(bands, dtype, file, tmp_path):
    """As they come from arrays in .npy, from archives, or from nowhere: what the network was given is shown."""
    path = str(tmp_path / 'bands.npy')
    pixels = (torch.rand(bands, 30, 40) * 90).to(dtype)
    if file:
        np.save(path, pixels.permute(1, 2, 0).numpy())
    sample = segmentation_sample(path if file else '', 30, 40)
    sample.set_metainfo({'ori_shape': (30, 40), 'img_shape': (30, 40)})
    (tile,) = drawn(tmp_path, sample, pixels)
    assert tile.shape[:2] == (75, 426)  # two pictures, each with its legend
    assert tile.std() > 5
    assert (tmp_path / 'predictions.png').is_file()
    assert not drawn(tmp_path, sample)  # without inputs there is nothing to draw on


def test_a_tile_of_a_large_file(tmp_path):
    """The file has another size than what was predicted: the inputs are shown, without what was padded."""
    path = str(tmp_path / 'large.png')
    cv2.imwrite(path, np.full((300, 400, 3), 250, np.uint8))
    sample = segmentation_sample(path, 30, 40)
    sample.set_metainfo({'ori_shape': (30, 40), 'img_shape': (15, 20)})
    inputs = torch.zeros(3, 32, 32, dtype=torch.uint8)
    inputs[:, :15, :20] = 90
    (tile,) = drawn(tmp_path, sample, inputs)
    assert tile.shape[:2] == (75, 426)
    assert tile.max(axis=2)[:, :100].min() > 0


def test_without_annotations_the_prediction_is_drawn_alone(tmp_path):
    path = str(tmp_path / 'a.png')
    cv2.imwrite(path, np.full((30, 40, 3), 200, np.uint8))
    sample = segmentation_sample(path, 30, 40)
    del sample.gt_sem_seg
    (tile,) = drawn(tmp_path, sample)
    assert tile.shape == (75, 209, 3)  # one picture and its legend
    del sample.pred_sem_seg
    (tile,) = drawn(tmp_path, sample)
    assert np.abs(tile.astype(int) - 200).max() <= 2  # the image as it is, and none that was drawn before


def test_what_fails_is_told_once(tmp_path, monkeypatch):
    hook, runner = PredictionsHook(num_images=5, show_dir=str(tmp_path / 'all')), drawing_runner(tmp_path)
    told = []
    monkeypatch.setattr(attempts, 'warn', lambda text, level=logging.WARNING: told.append((text, level)))
    monkeypatch.setattr('mmext_backbones.engine.picture_hooks.draw_sides', lambda *args: 1 / 0)
    for _ in range(3):
        hook.before_val_epoch(runner)
        hook.after_val_iter(runner, 0, outputs=[segmentation_sample('', 30, 40)])
        hook.after_val_epoch(runner, {})
        hook.after_test_iter(runner, 0, outputs=[segmentation_sample('', 30, 40)])
    warnings = [text for text, level in told if level == logging.WARNING]
    assert warnings == ['pictures of predictions: left out, and the run goes on (ZeroDivisionError: division by zero).']


DAMAGED = ('', '[]', '{"interval": 0}', '[' * 10**5, '{"interval": 5, "losses": {"a": [1]}}', '\0')


@pytest.mark.parametrize('content', DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_curves_of_the_run_before(content, tmp_path):
    (tmp_path / 'curves.json').write_text(content)
    hook = CurvesHook(interval=10)
    train(hook, runner_at(tmp_path, iteration=20), 40)
    assert [step for step, _ in hook.losses['loss']] == [30, 40]
    assert json.loads((tmp_path / 'curves.json').read_text())['interval'] == 10


def test_curves_that_cannot_be_written(tmp_path):
    (tmp_path / 'curves.json').mkdir()
    (tmp_path / 'curves.png').mkdir()
    hook = CurvesHook(interval=10)
    train(hook, runner_at(tmp_path), 20)
    assert [step for step, _ in hook.losses['loss']] == [10, 20]


def test_many_losses_have_colours_of_their_own(tmp_path):
    """A cascade has twelve; the legend stands below them."""
    from mmext_backbones.drawing.charts import Line, Panel, draw_chart

    lines = [Line(f's{i}.loss', [(0, i), (10, i + 1)]) for i in range(24)]
    figure = draw_chart([Panel('losses', 'loss', lines)], 'title', columns=1, size=(5.5, 4.4))
    axes = figure.axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 24
    figure.savefig(tmp_path / 'a.png')
    legend = axes.get_legend().get_window_extent()
    assert legend.y1 < axes.get_window_extent().y0
