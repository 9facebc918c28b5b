"""What a test leaves behind, with models that know the answer and spoil it a little: the numbers are not trivial."""

import contextlib
import json
import os
import pickle
import shutil
from copy import deepcopy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import InstanceData, PixelData

from mmext_backbones.datasets.shapes.files import SEMANTIC_CLASSES, make_shapes
from mmext_backbones.datasets.shapes.scenes import CLASSES
from mmext_backbones.engine import setup
from mmext_backbones.engine import test as testing
from mmext_backbones.engine.evaluation import predictions
from mmext_backbones.engine.evaluation.per_class import per_class_lines
from mmext_backbones.engine.evaluation.results import describe, results_name, write_results
from mmext_backbones.utils.errors import UserError

NUM_VAL = 9
ABSENT = 'cross'  # taken out of the ground truth of scenes
CONFIGS = {
    'detection': "default_scope = 'mmdet'\n"
    "model = dict(type='DetectorThatKnows')\n"
    "val_evaluator = dict(type='CocoMetric', metric=['bbox', 'segm'])\n",
    'boxes': "_base_ = ['detection.py']\nmodel = dict(with_masks=False)\nval_evaluator = dict(metric='bbox')\n",
    'segmentation': "default_scope = 'mmseg'\nmodel = dict(type='SegmentorThatKnows')\n",
    'classification': "default_scope = 'mmpretrain'\nmodel = dict(type='SomeClassifier')\n",
}
LIBRARY = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}


class Knows(BaseModel):
    def __init__(self, with_masks: bool = True) -> None:
        super().__init__()
        self.with_masks = with_masks
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs: list, data_samples: list, mode: str) -> list:
        for number, sample in enumerate(data_samples):
            seed = np.frombuffer(Path(sample.img_path).read_bytes()[-64:], np.uint8)  # the same in every run
            self.spoil(sample, np.random.default_rng([number, *seed]))
        return data_samples


@MODELS.register_module(force=True)
class DetectorThatKnows(Knows):
    """Objects shifted by some pixels, some missing, some of a wrong class, one that is not there."""

    def spoil(self, sample: object, rng: np.random.Generator) -> None:
        H, W = sample.ori_shape
        found, gt = [], sample.gt_instances
        for index, label in enumerate(gt.labels):
            mask = np.zeros((H, W), np.uint8)
            x1, y1, x2, y2 = gt.bboxes.tensor[index].int().tolist()
            mask[y1:y2, x1:x2] = gt.masks.masks[index][y1:y2, x1:x2] if self.with_masks else 1
            if rng.random() < 0.85:
                wrong = rng.random() < 0.15
                found.append((np.roll(mask, rng.integers(-4, 5, 2), (0, 1)), rng.integers(5) if wrong else int(label)))
        stray = np.zeros((H, W), np.uint8)
        stray[4:20, 4:30] = 1
        found.append((stray, CLASSES.index('circle')))
        masks = torch.from_numpy(np.stack([mask for mask, _ in found])).bool()
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (cv2.boundingRect(mask) for mask, _ in found)]
        pred = InstanceData(bboxes=torch.tensor(boxes, dtype=torch.float32) + 0.3)
        pred.labels = torch.tensor([label for _, label in found])
        pred.scores = torch.from_numpy(rng.random(len(found), dtype=np.float32))
        if self.with_masks:
            pred.masks = masks
        sample.pred_instances = pred


@MODELS.register_module(force=True)
class SegmentorThatKnows(Knows):
    def spoil(self, sample: object, rng: np.random.Generator) -> None:
        labels = sample.gt_sem_seg.data
        sample.pred_sem_seg = PixelData(data=labels.roll(tuple(rng.integers(-4, 5, 2)), (1, 2)))
        sample.seg_logits = PixelData(data=torch.zeros(6, *labels.shape[1:]))


@MODELS.register_module(force=True)
class SomeClassifier(Knows):
    def spoil(self, sample: object, rng: np.random.Generator) -> None:
        scores = torch.from_numpy(rng.random(5, dtype=np.float32))
        scores[int(sample.gt_label)] += 0.3
        sample.set_pred_score(scores / scores.sum())


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    """Scenes without any object of one class."""
    root = make_shapes(tmp_path_factory.mktemp('data') / 'made', size=144, num_train=1, num_val=NUM_VAL)
    path = root / 'annotations' / 'instances_val.json'
    content = json.loads(path.read_text())
    gone = {item['id'] for item in content['categories'] if item['name'] == ABSENT}
    content['annotations'] = [item for item in content['annotations'] if item['category_id'] not in gone]
    path.write_text(json.dumps(content))
    for path in (root / 'semantic' / 'val').glob('*.png'):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        labels[labels == 1 + SEMANTIC_CLASSES.index(ABSENT)] = 1
        cv2.imwrite(str(path), labels)
    return root


@pytest.fixture
def folder(made, tmp_path, monkeypatch) -> Path:
    """A folder to run in, with configs and a checkpoint."""
    for name, text in CONFIGS.items():
        (tmp_path / f'{name}.py').write_text(text)
    torch.save({'state_dict': {'weight': torch.zeros(1)}}, tmp_path / 'x.pth')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: made)
    return tmp_path


def run(task: str, *args: str, **options: str) -> tuple[dict, dict]:
    """The metrics that a test returns, and its file of results."""
    if task != 'boxes':
        pytest.importorskip(LIBRARY[task])
    metrics = testing.test(f'{task}.py', *args, shapes=True, **options)
    source = Path(args[0] if args else options['predictions'])
    return metrics, json.loads((source.parent / f'{source.stem}.{task}_shapes.json').read_text())


def mean(values: list) -> float:
    """Of those that are defined."""
    return float(np.mean([value for value in values if value is not None]))


# --------------------------------------------------------------------------------------------------------------------
# Saved, and evaluated again


@pytest.mark.parametrize(
    ('task', 'out'),
    [
        pytest.param('detection', 'new/p.pkl', marks=pytest.mark.slow),
        ('detection', 'new/p.json'),
        ('detection', 'p.segm.json'),
        ('segmentation', 'p.pkl'),
        ('classification', 'p.pickle'),
    ],
)
def test_given_predictions_measure_as_the_model_does(task, out, folder):
    expected, direct = run(task, 'x.pth', out=out)
    given = out.replace('.segm', '')
    metrics, again = run(task, predictions=given)
    assert metrics == expected
    assert again['metrics'] == direct['metrics']
    assert again['per_class'] == direct['per_class']
    assert again['checkpoint'] is again['tta'] is None
    assert direct['predictions'] is None
    assert all((folder / path).is_file() for path in again['predictions'])
    values = [value for value in direct['metrics'].values() if value]
    assert values  # and not only zeros


def test_one_kind_of_a_pair(folder):
    expected, direct = run('detection', 'x.pth', out='p.json')
    for kind in ('bbox', 'segm'):
        metrics, _ = run('detection', predictions=f'p.{kind}.json')
        assert metrics == {key: value for key, value in expected.items() if kind in key}
    # as COCO has it: masks without boxes, under a name of one's own
    entries = json.loads(Path('p.segm.json').read_text())
    for entry in entries:
        entry.pop('bbox')
    Path('mine.json').write_text(json.dumps(entries))
    metrics, again = run('detection', predictions='mine.json')
    assert metrics == {key: value for key, value in expected.items() if 'segm' in key}
    assert again['per_class'] == {'segm': direct['per_class']['segm']}


def test_masks_of_an_earlier_test_go(folder):
    run('detection', 'x.pth', out='p.json')
    run('boxes', 'x.pth', out='p.json')
    assert sorted(path.name for path in folder.glob('p.*.json')) == ['p.bbox.json']


def test_segmentation_is_saved_small(folder):
    run('segmentation', 'x.pth', out='p.pkl')
    samples = pickle.loads(Path('p.pkl').read_bytes())
    assert len(samples) == NUM_VAL
    assert 'seg_logits' not in samples[0]
    assert samples[0]['pred_sem_seg']['data'].dtype == torch.uint8


# --------------------------------------------------------------------------------------------------------------------
# The values of each class


def test_ap_of_each_class_as_pycocotools_alone_has_it(folder, made):
    metrics, file = run('detection', 'x.pth', out='p.json')
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    gt = COCO(str(made / 'annotations' / 'instances_val.json'))
    for kind in ('bbox', 'segm'):
        entries = json.loads(Path(f'p.{kind}.json').read_text())
        if kind == 'segm':
            entries = [{key: value for key, value in entry.items() if key != 'bbox'} for entry in entries]
        table = file['per_class'][kind]
        assert list(table) == list(CLASSES)
        for category in gt.loadCats(gt.getCatIds()):
            evaluation = COCOeval(gt, gt.loadRes(deepcopy(entries)), kind)
            evaluation.params.catIds = [category['id']]
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            row = dict(table[category['name']])
            assert row.pop('objects') == len(gt.getAnnIds(catIds=[category['id']]))
            expected = [None if value == -1 else value for value in evaluation.stats[:6]]
            assert list(row.values()) == pytest.approx(expected, abs=1e-5)  # five decimals are written
        assert set(table[ABSENT].values()) == {None, 0}
        aps = [row['AP'] for row in table.values()]
        assert 0.1 < mean(aps) < 0.9
        # the metric itself is rounded to three decimals
        for ours, theirs in (('AP', 'mAP'), ('AP_50', 'mAP_50'), ('AP_75', 'mAP_75')):
            values = [row[ours] for row in table.values()]
            assert mean(values) == pytest.approx(metrics[f'coco/{kind}_{theirs}'], abs=5.1e-4)


def test_iou_of_each_class_from_a_confusion_matrix(folder, made):
    metrics, file = run('segmentation', 'x.pth', out='maps')
    confusion = np.zeros((6, 6), int)
    for path in sorted((made / 'semantic' / 'val').glob('*.png')):
        label, pred = (cv2.imread(str(of), cv2.IMREAD_UNCHANGED).astype(int) - 1 for of in (path, f'maps/{path.name}'))
        np.add.at(confusion, (label.ravel(), pred.ravel()), 1)
    right, labelled, predicted = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    table = file['per_class']['semantic']
    assert list(table) == list(SEMANTIC_CLASSES)
    for index, (name, row) in enumerate(table.items()):
        if name == ABSENT:
            assert labelled[index] == predicted[index] == 0
            assert row == {'IoU': None, 'Acc': None}
            continue
        iou = 100 * right[index] / (labelled[index] + predicted[index] - right[index])
        assert row == pytest.approx({'IoU': iou, 'Acc': 100 * right[index] / labelled[index]}, abs=1e-4)  # float32
        assert 10 < iou < 99
    for ours in ('IoU', 'Acc'):
        assert mean([row[ours] for row in table.values()]) == pytest.approx(metrics[f'm{ours}'], abs=5.1e-3)


def test_accuracy_of_each_class(folder):
    metrics, file = run('classification', 'x.pth', out='p.pkl')
    samples = pickle.loads(Path('p.pkl').read_bytes())
    table = file['per_class']['classification']
    names = sorted(CLASSES)
    for index, name in enumerate(names):
        right = [int(s['pred_score'].argmax()) == index for s in samples if int(s['gt_label']) == index]
        assert table[name]['images'] == len(right) > 0
        assert table[name]['top1'] == pytest.approx(100 * np.mean(right), abs=1e-5)
    overall = np.average([table[n]['top1'] for n in names], weights=[table[n]['images'] for n in names])
    assert overall == pytest.approx(metrics['accuracy/top1'], abs=1e-4)
    assert 20 < overall < 100


def test_many_classes_stand_side_by_side():
    names = [f'class {index}' for index in range(79)] + ['[a long name with brackets]']
    table = {name: {'AP': index / 80, 'AP_50': float('nan'), 'objects': index} for index, name in enumerate(names)}
    lines = per_class_lines({'bbox': table, 'segm': table})
    assert len(lines) < 32
    assert max(map(len, lines)) <= 120
    text = '\n'.join(lines)
    assert 'box AP' in text
    assert 'mask AP' in text
    for index, name in enumerate(names):
        assert name[:18] in text
        assert text.count(f'{index / 80:.3f}') >= 2
    few = per_class_lines({'bbox': dict(list(table.items())[:3])})
    assert few[1].split() == ['class', '0', '0.000', '-', '0']
    assert len(few) == 4
    assert len(per_class_lines({'bbox': {str(i): {'AP': 0.5} for i in range(1000)}})) == 1


def test_the_screen(folder, capsys):
    run('detection', 'x.pth')
    lines = capsys.readouterr().out.splitlines()
    heads = [line.split()[0] for line in lines if 'objects' in line]
    assert heads == ['box', 'mask']
    row = next(line for line in lines if line.startswith(ABSENT))
    assert row.split() == [ABSENT, *'------', '0']
    assert any('mAP_s' in line for line in lines)
    assert 'results      x.detection_shapes.json' in lines


# --------------------------------------------------------------------------------------------------------------------
# The file


def test_what_the_file_says(folder, made):
    _, file = run('detection', 'x.pth', cfg_options={'test_dataloader.batch_size': 2})
    keys = (
        'format config options checkpoint runtime predictions date versions shapes dataset num_images tta '
        'metrics per_class'
    )
    assert list(file) == keys.split()
    assert file['config'] == 'detection.py'
    assert file['options'] == {'test_dataloader.batch_size': 2}
    assert file['checkpoint']['bytes'] == Path('x.pth').stat().st_size
    assert len(file['checkpoint']['sha256']) == 16
    assert file['versions']['torch'] == torch.__version__
    assert {'mmext_backbones', 'mmengine', 'mmcv', 'mmdet'} <= set(file['versions'])
    assert file['dataset'][0]['ann_file'] == 'annotations/instances_val.json'
    assert file['dataset'][0]['data_root'] == str(made)
    assert (file['shapes'], file['tta'], file['num_images']) == (True, False, NUM_VAL)
    assert 'coco/segm_mAP_l' in file['metrics']
    assert file['per_class']['bbox'][ABSENT]['AP'] is None


def test_undefined_values_are_null():
    cfg = Config(
        {'test_dataloader': {'dataset': {'type': 'ConcatDataset', 'datasets': [{'type': 'A', 'ann_file': 'a'}]}}}
    )
    metrics = {'coco/bbox_mAP_l': -1.0, 'mIoU': np.float32('nan'), 'shift': -1.0, 'top1': torch.tensor(0.123456789)}
    record = describe(
        cfg, 'c.py', checkpoint='https://host/x.pth', metrics=metrics, per_class={}, num_images=3, tta=True
    )
    assert record['metrics'] == {'coco/bbox_mAP_l': None, 'mIoU': None, 'shift': -1.0, 'top1': 0.12346}
    assert record['checkpoint'] == {'path': 'https://host/x.pth', 'bytes': None, 'sha256': None}
    assert record['dataset'] == [{'type': 'A', 'ann_file': 'a'}]
    json.dumps(record, allow_nan=False)


def test_the_config_of_the_training_stays(folder):
    left = Path('work_dirs/detection_shapes/detection.py')  # by a training
    left.parent.mkdir(parents=True)
    left.write_text('train_dataloader = dict()\n')
    run('detection', 'x.pth')
    assert left.read_text() == 'train_dataloader = dict()\n'


def test_names_tell_runs_apart():
    cfg = Config({}, filename=__file__)
    names = {results_name('a/x.pth', cfg, shapes=shapes, tta=tta) for shapes in (True, False) for tta in (True, False)}
    assert len(names) == 4
    assert 'x.test_results.json' in names


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    path = testing._write_results({'a': 1}, str(tmp_path / 'file' / 'x.pth'), str(tmp_path), 'x.json')
    assert json.loads(path.read_text()) == {'a': 1}
    assert path.parent == tmp_path
    assert 'cannot be written' in capsys.readouterr().out
    with pytest.raises(OSError, match='file'):
        write_results({}, [tmp_path / 'file'], 'x.json')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_results_of_a_checkpoint_of_somebody_else(folder):
    (folder / 'theirs').mkdir()
    shutil.copy('x.pth', folder / 'theirs')
    (folder / 'theirs').chmod(0o555)
    testing.test('detection.py', 'theirs/x.pth', shapes=True)
    assert (folder / 'work_dirs' / 'detection_shapes' / 'x.detection_shapes.json').is_file()


# --------------------------------------------------------------------------------------------------------------------
# What cannot be


@pytest.mark.parametrize(
    ('task', 'options', 'expected'),
    [
        ('detection', {}, 'Name a checkpoint, an exported file .* or saved predictions'),
        ('detection', {'checkpoint': 'x.pth', 'predictions': 'p.pkl'}, 'only one of them'),
        ('detection', {'predictions': 'p.pkl', 'tta': True}, '--tta needs a checkpoint'),
        ('detection', {'predictions': 'p.pkl', 'out': 'q.pkl'}, '--out needs a checkpoint'),
        ('detection', {'predictions': 'p.pkl', 'launcher': 'pytorch'}, '--launcher needs a checkpoint'),
        ('detection', {'checkpoint': 'x.pth', 'out': 'p.txt'}, r'NAME\.pkl, NAME\.json .* or a folder'),
        ('detection', {'checkpoint': 'x.pth', 'out': 'maps'}, 'needs the evaluator IoUMetric'),
        ('segmentation', {'checkpoint': 'x.pth', 'out': 'p.json'}, 'needs the evaluator CocoMetric'),
        ('detection', {'checkpoint': 'x.pth', 'out': 'x.pth/p.pkl'}, r'x\.pth is no folder'),
        ('segmentation', {'predictions': 'p.json'}, 'needs the evaluator CocoMetric'),
        ('detection', {'predictions': 'p.pth'}, r'expected NAME\.pkl'),
        ('detection', {'predictions': 'nothing.pkl'}, 'no such file'),
    ],
)
def test_refused_before_anything_is_built(task, options, expected, folder, monkeypatch):
    def build(*args, **kwargs):
        raise AssertionError('too late')

    for name in ('build_runner', 'evaluate_predictions'):
        monkeypatch.setattr(testing, name, build)
    with pytest.raises(UserError, match=expected):
        testing.test(f'{task}.py', shapes=True, **options)


@pytest.fixture(scope='module')
def saved():
    """Holds what a test of the detector saved, once there was one."""
    return {}


def edited(change, saved):
    """Predictions of the model, changed in place."""
    if not saved:
        run('detection', 'x.pth', out='p.pkl')
        saved['p.pkl'] = Path('p.pkl').read_bytes()
    samples = pickle.loads(saved['p.pkl'])
    samples = change(samples) or samples
    Path('p.pkl').write_bytes(pickle.dumps(samples))


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        (lambda samples: samples[1:], 'of 8 images, and the test data of the config has 9'),
        (lambda samples: samples[0].update(img_id=12345), "img_id '12345' is not in the test data"),
        (lambda samples: samples[0]['pred_instances'].update(labels=torch.tensor([7])), 'at least 8 classes, .* has 5'),
        (lambda samples: [sample.pop('pred_instances') for sample in samples] and None, 'lack .*pred_instances'),
        (lambda samples: {'a': 1}, 'expected a list'),
        (lambda samples: [os.system], 'neither a tensor nor a plain value'),
    ],
    ids=['number', 'images', 'classes', 'nothing', 'no list', 'code'],
)
def test_pickles_of_something_else(change, expected, folder, saved):
    edited(change, saved)
    with pytest.raises(UserError, match=expected):
        run('detection', predictions='p.pkl')


@pytest.mark.parametrize(
    ('content', 'expected'),
    [
        ([{'image_id': 987654, 'category_id': 1, 'score': 0.5, 'bbox': [0, 0, 9, 9]}], 'image_id .*987654'),
        ([{'image_id': 0, 'category_id': 99, 'score': 0.5, 'bbox': [0, 0, 9, 9]}], 'category_id .*99'),
        ([{'image_id': 0, 'category_id': 1, 'score': 0.5}], 'neither boxes nor masks'),
        ({'images': []}, "COCO's result format"),
        ('', "COCO's result format"),
    ],
)
def test_json_of_something_else(content, expected, folder, made):
    first = json.loads((made / 'annotations' / 'instances_val.json').read_text())['images'][0]['id']
    if isinstance(content, list) and content[0]['image_id'] == 0:
        content = [{**content[0], 'image_id': first}]
    Path('p.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=expected):
        run('detection', predictions='p.json')


def test_masks_for_a_test_of_boxes(folder, made):
    first = json.loads((made / 'annotations' / 'instances_val.json').read_text())['images'][0]['id']
    masks = [{'image_id': first, 'category_id': 1, 'score': 0.5, 'segmentation': {}}]
    Path('q.segm.json').write_text(json.dumps(masks))
    with pytest.raises(UserError, match='hold segm, which the config does not evaluate'):
        run('boxes', predictions='q.segm.json')


def test_tests_on_other_data_keep_their_files(tmp_path):
    """The same test replaces its file, another one has a number in the name; what is no result stays."""
    record = {'config': 'a.py', 'options': {}, 'shapes': False, 'dataset': [{'ann_file': 'x'}], 'num_images': 8,
              'tta': False, 'metrics': {'mAP': 0.1}}  # fmt: skip
    other = {**record, 'dataset': [{'ann_file': 'y'}], 'num_images': 2}
    paths = [write_results(each, [tmp_path], 'x.a.json') for each in (record, other, {**record, 'metrics': {}}, other)]
    assert [path.name for path in paths] == ['x.a.json', 'x.a.2.json', 'x.a.json', 'x.a.2.json']
    assert json.loads(paths[0].read_text())['metrics'] == {}
    names = [
        write_results({**record, 'runtime': runtime}, [tmp_path], 'x.a.json').name for runtime in (None, 'openvino')
    ]
    assert names == ['x.a.json', 'x.a.3.json']
    for content in ('', '[' * 10**5, '[]', '{"config": 5}'):
        (tmp_path / 'mine.json').write_text(content)
        assert write_results(record, [tmp_path], 'mine.json').name == 'mine.2.json'
        assert (tmp_path / 'mine.json').read_text() == content


@pytest.mark.parametrize(
    'content',
    [b'I1\n)R.', b'I1\nI2\nI3\ns.', b'\x80\x04\x8e' + 7 * b'\xff' + b'\x7f.', pickle.dumps(print), b'(' * 10**5],
    ids=['call', 'item', 'length', 'function', 'marks'],
)
def test_damaged_pickles_of_predictions(content, tmp_path):
    (tmp_path / 'p.pkl').write_bytes(content)
    with pytest.raises(UserError, match=r'predictions .*p\.pkl. cannot be read'):
        predictions._read_pickle(tmp_path / 'p.pkl')


def test_a_pickle_changes_no_function(tmp_path):
    """It may set attributes of what it names."""
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    content = b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__I1\n\x85s\x86b.'
    (tmp_path / 'p.pkl').write_bytes(content)
    with contextlib.suppress(UserError):
        predictions._read_pickle(tmp_path / 'p.pkl')
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults


def test_no_prediction_is_written_over_the_data(tmp_path):
    (tmp_path / 'ann').mkdir()
    (tmp_path / 'val.bbox.json').write_text('{}')
    dataset = {'data_root': str(tmp_path), 'data_prefix': {'img_path': 'img', 'seg_map_path': 'ann'},
               'ann_file': 'val.bbox.json'}  # fmt: skip
    cfg = Config({'default_scope': 'mmseg', 'test_dataloader': {'dataset': dataset}})
    for metric, out in (('IoUMetric', 'ann'), ('IoUMetric', 'ann/inside'), ('CocoMetric', 'val.json')):
        cfg.test_evaluator = {'type': metric}
        with pytest.raises(UserError, match=r'would replace|would be replaced'):
            predictions.save_predictions(cfg, str(tmp_path / out))
    assert (tmp_path / 'val.bbox.json').read_text() == '{}'
    cfg.test_evaluator = {'type': 'IoUMetric'}
    predictions.save_predictions(cfg, str(tmp_path / 'maps'))
