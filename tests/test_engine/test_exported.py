"""tools/test.py --onnx: the pictures of a config through a file, with the numbers that predict.py gives."""

import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')

from mmext_backbones.datasets.shapes.files import SEMANTIC_CLASSES, make_shapes
from mmext_backbones.datasets.shapes.scenes import CLASSES
from mmext_backbones.engine import setup
from mmext_backbones.runtime import predict
from tests import whole_files

LIBRARY = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}
MAKE = {
    'detection': (whole_files.detector, CLASSES),
    'segmentation': (whole_files.segmentor, SEMANTIC_CLASSES),
    'classification': (whole_files.classifier, CLASSES),
}
CONFIGS = {
    'detection': "default_scope = 'mmdet'\n"
    "model = dict(type='MaskRCNN')\n"
    "visualizer = dict(type='DetLocalVisualizer')\n"
    "val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])\n",
    'segmentation': "default_scope = 'mmseg'\nmodel = dict(type='EncoderDecoder')\n",
    'classification': "default_scope = 'mmpretrain'\nmodel = dict(type='ImageClassifier')\n",
}


RESIZE = {'scale': [96, 80], 'backend': 'cv2', 'interpolation': 'bilinear'}
SHOWN = ['--cfg-options', 'test_dataloader.dataset.pipeline.1.scale=(96, 80)', 'test_dataloader.batch_size=2']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A config and a file of each task, and a small Shapes set."""
    path = tmp_path_factory.mktemp('exported')
    make_shapes(path / 'made', size=64, num_train=5, num_val=3)
    for task, (make, classes) in MAKE.items():
        (path / f'{task}.py').write_text(CONFIGS[task])
        channels = {} if task == 'detection' else {'channels': len(classes)}
        resize = {**RESIZE, 'keep_ratio': task != 'classification'}
        make(path / f'{task}.onnx', **channels, classes=list(classes), palette=[], resize=resize)
    return path


@pytest.fixture
def tool(folder, monkeypatch, run_tool):
    """Runs tools/test.py in the folder, on its Shapes."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: Path('made'))
    return lambda *arguments: run_tool('test', *arguments)


def run(tool: Callable, task: str, out: str) -> str:
    pytest.importorskip(LIBRARY[task])
    done = tool(f'{task}.py', '--onnx', f'{task}.onnx', '--shapes', '--out', out, *SHOWN)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def predicted(task: str, pictures: str, *arguments: str) -> Path:
    """Where predict.py has left what the file says of a folder of pictures."""
    given = [f'{task}.onnx', pictures, '--out', f'out_{task}', '--overwrite', *arguments]
    assert predict.main(given) == 0
    return Path(f'out_{task}')


def test_a_detector(tool):
    screen = run(tool, 'detection', 'p.json')
    predicted('detection', 'made/val', '--json', 'q.json')
    expected = json.loads(Path('q.json').read_text())
    assert len(expected) == 9
    for kind, key in (('bbox', 'bbox'), ('segm', 'segmentation')):
        found = json.loads(Path(f'p.{kind}.json').read_text())
        for names in (('image_id', 'category_id', 'score'), ('image_id', 'category_id', key)):
            one, other = ([[entry[name] for name in names] for entry in of] for of in (found, expected))
            assert sorted(one, key=str) == sorted(other, key=str)
    assert re.search(r'^mask +\d', screen, re.MULTILINE)
    record = json.loads(Path('detection.detection_shapes.json').read_text())
    assert record['checkpoint']['path'] == 'detection.onnx'
    assert (record['runtime'], record['num_images']) == ('onnxruntime', 3)
    assert cv2.imread('detection.detection_shapes.png') is not None


def test_a_segmentor(tool):
    screen = run(tool, 'segmentation', 'maps')
    out = predicted('segmentation', 'made/val')
    names = sorted(path.name for path in Path('maps').glob('*.png'))
    assert names == ['000000.png', '000001.png', '000002.png']
    for name in names:
        one, other = (cv2.imread(str(path / name), cv2.IMREAD_UNCHANGED) for path in (Path('maps'), out / 'segments'))
        np.testing.assert_array_equal(one, other + 1)  # mmseg's files of data without a class 0 begin at 1
    assert 'mIoU' in screen


def test_a_classifier(tool):
    screen = run(tool, 'classification', 'p.pkl')
    predicted('classification', 'made/classes/val', '--json', 'q.json')
    samples = pickle.loads(Path('p.pkl').read_bytes())
    entries = json.loads(Path('q.json').read_text())
    assert len(samples) == len(entries) == 5
    for sample, entry in zip(samples, entries, strict=True):
        assert sample['img_path'].endswith(entry['file_name'].removeprefix('made/'))
        assert [float(score) for score in sample['pred_score'].sort(descending=True)[0]] == [
            top['score'] for top in entry['top']
        ]
        assert int(sample['pred_label']) == entry['top'][0]['label']
    assert 'top1' in screen


def test_pictures_of_several_sizes_in_a_batch(folder, monkeypatch):
    pytest.importorskip('mmdet')
    from mmdet.structures import DetDataSample

    monkeypatch.chdir(folder)
    sizes, rng = [(40, 60), (40, 60), (30, 60), (40, 60)], np.random.default_rng(0)
    inputs = [torch.from_numpy(rng.integers(0, 256, (3, *size), np.uint8)) for size in sizes]
    samples = [DetDataSample(metainfo={'ori_shape': (80, 120), 'scale_factor': (0.5, h / 80)}) for h, _ in sizes]
    model = MODELS.build({'type': 'mmext_backbones.ExportedModel', 'file': 'detection.onnx'})
    together = copy.deepcopy(model).test_step({'inputs': inputs, 'data_samples': samples})
    assert all(one is other for one, other in zip(together, samples, strict=True))
    plain = predict.Model('detection.onnx')
    for picture, sample in zip(inputs, together, strict=True):
        (alone,) = plain.predict_resized([picture.permute(1, 2, 0).numpy()], [(80, 120)])
        found = sample.pred_instances
        for key, value in (('boxes', found.bboxes), ('scores', found.scores), ('masks', found.masks)):
            np.testing.assert_array_equal(value.numpy(), alone[key])


@pytest.mark.parametrize(
    ('task', 'arguments', 'expected'),
    [
        ('detection', ['x.pth', '--onnx', 'detection.onnx'], 'a checkpoint x.pth and --onnx detection.onnx: only one'),
        ('detection', ['--onnx', 'detection.onnx', '--tta'], '--tta needs a checkpoint'),
        ('detection', ['--onnx', 'detection.onnx', '--bf16'], '--bf16 needs a checkpoint'),
        ('detection', ['x.pth', '--runtime', 'openvino'], 'is for a file named with --onnx'),
        ('detection', ['--onnx', 'nothing.onnx'], 'no such file'),
        ('detection', ['--onnx', 'detection.py'], 'no ONNX file'),
        ('detection', ['--onnx', 'segmentation.onnx'], 'is for semantic segmentation, and the config is one of mmdet'),
        ('segmentation', ['--onnx', 'few.onnx'], 'knows 3 classes, and the test data of the config has 6'),
    ],
)
def test_refused(task, arguments, expected, tool):
    pytest.importorskip(LIBRARY[task])
    whole_files.segmentor(Path('few.onnx'))
    done = tool(f'{task}.py', *arguments, '--shapes')
    assert done.returncode == 2
    assert expected in done.stderr
