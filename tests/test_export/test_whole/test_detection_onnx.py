"""Whole detectors as ONNX files: one for any size and number of images, which predicts what mmdet does."""

import json

import pytest
import torch

from mmext_backbones.export import ParityError, export_whole
from mmext_backbones.export.whole import checking, whole_network
from mmext_backbones.export.whole.checking import pictures
from mmext_backbones.export.whole.describing import describe_whole
from mmext_backbones.export.writing import run_onnx

from .detectors import SWIN, detector, rows_of

pytest.importorskip('mmdet')
onnx = pytest.importorskip('onnx', reason='requirements/extras.txt is not installed')
pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')
pytest.importorskip('onnxscript', reason='requirements/extras.txt is not installed')

KNOWN = {
    'classes': ['a', 'traffic light', 'c', 'd', 'e'],
    'palette': [(0, 0, 0)] * 5,
    'resize': {'scale': [1333, 800], 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'cv2'},
    'weights_sha256': 'abc',
    'arch': 'small',
}
AGNOSTIC = {'roi_head__bbox_head__reg_class_agnostic': True, 'roi_head__mask_head__class_agnostic': True}
slow = pytest.mark.slow
each_kind = pytest.mark.parametrize(
    'exported',
    [
        ('mask', {}),
        pytest.param(('cascade', {}), marks=slow),
        pytest.param(('retina', {}), marks=slow),
        pytest.param(('mask', {'backbone': SWIN, **AGNOSTIC}), marks=slow),
    ],
    indirect=True,
    ids=lambda value: value[0] + ''.join(value[1]),
)


@pytest.fixture(scope='module')
def exported(request, tmp_path_factory):
    model = detector(request.param[0], **request.param[1])
    return model, export_whole(model, tmp_path_factory.mktemp('whole') / 'net.onnx', size=(64, 96), metadata=KNOWN)


@each_kind
def test_every_size_and_batch(exported):
    model, made = exported
    rows = rows_of(model, made.network, run_onnx(made.path))
    limits = {'unmatched': 0.0, 'boxes': 1e-2, 'scores': 1e-4, 'masks': 1e-3}  # float32 in another order
    assert [row for row in rows if not row.value <= limits[row.name]] == []
    assert all(row.results >= 2 * row.images for row in rows)


@each_kind
def test_what_was_compared(exported):
    _, made = exported
    assert {(row.images, row.size) for row in made.rows} == {(1, (64, 96)), (3, (41, 109)), (2, (85, 49))}
    opened = made.rows[2 * len(made.network.outputs) + 2 :]
    assert all(row.results == 20 * row.images for row in opened)  # without a threshold every image is full
    assert not list(made.path.parent.glob('*.opened*'))


@each_kind
def test_what_stands_in_the_file(exported):
    _, made = exported
    file = onnx.load(made.path)
    onnx.checker.check_model(file, full_check=True)
    assert {opset.domain for opset in file.opset_import} == {''}
    assert not file.functions
    assert not {'Loop', 'If', 'SequenceConstruct'} & {node.op_type for node in file.graph.node}
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*file.graph.input, *file.graph.output)
    }
    assert axes.pop('image') == ['batch', 3, 'height', 'width']
    shapes = {'dets': ['batch', 20, 5], 'labels': ['batch', 20], 'masks': ['batch', 20, 28, 28]}
    assert axes == {name: shapes[name] for name in made.network.outputs}


def test_what_a_file_says_of_itself():
    facts = describe_whole(whole_network(detector('mask')), 'image', None, KNOWN, 18)
    whole = json.loads(facts['mmext_backbones.whole'])
    assert whole.pop('torch') == torch.__version__
    assert whole == {
        'version': 1,
        'task': 'instance segmentation',
        'classes': KNOWN['classes'],
        'palette': [[0, 0, 0]] * 5,
        'input': {
            'name': 'image',
            'channels': 'BGR',
            'range': [0, 255],
            'raw': False,
            'mean': [123.675, 116.28, 103.53],
            'std': [58.395, 57.12, 57.375],
            'to_rgb': True,
            'size_divisor': 32,
        },
        'resize': KNOWN['resize'],
        'score_thr': 0.05,
        'iou_thr': 0.5,
        'mask_thr': 0.5,
        'max_per_img': 20,
        'precision': 'float32',
        'weights_sha256': 'abc',
        'opset': 18,
    }
    assert facts['names'] == str(dict(enumerate(KNOWN['classes'])))
    assert (facts['task'], facts['stride'], facts['batch']) == ('segment', '32', '1')
    assert facts['model_info model_type'] == 'MaskRCNN'
    assert facts['model_info labels'] == 'a traffic_light c d e'
    assert facts['model_info confidence_threshold'] == '0.05'
    assert json.loads(facts['mmext_backbones.backbone']) == 'ResNet'
    assert json.loads(facts['mmext_backbones.arch']) == 'small'


@slow
def test_one_size_and_normalised_images(tmp_path):
    model = detector('retina')
    made = export_whole(model, tmp_path / 'net.onnx', size=(64, 96), dynamic=False, raw=True)
    file = onnx.load(made.path)
    assert [value.name for value in file.graph.input] == ['input']
    assert [dim.dim_value for dim in file.graph.input[0].type.tensor_type.shape.dim][2:] == [64, 96]
    assert {row.size for row in made.rows} == {(64, 96)}
    assert json.loads(made.metadata['mmext_backbones.whole'])['input']['raw'] is True


@each_kind
def test_a_file_that_differs_is_refused(exported, monkeypatch):
    model, made = exported
    load = checking.run_onnx

    def shifted(path):
        def run(x):
            dets, *others = load(path)(x)
            dets[..., :4] += 3
            return [dets, *others]

        return run

    monkeypatch.setattr(checking, 'run_onnx', shifted)
    with pytest.raises(ParityError, match=r'comparisons with predict differ by more than they may: unmatched'):
        checking.check_file(model, made.network, made.path, [(64, 96)])
    monkeypatch.setattr(checking, 'run_onnx', lambda path: lambda x: [out * float('nan') for out in load(path)(x)])
    with pytest.raises(ParityError, match=r'at 64 x 96 dets, labels.* of the file is not finite'):
        checking.check_file(model, made.network, made.path, [(64, 96)])


@each_kind
def test_images_without_objects(exported):
    """Where the file finds nothing, its rows are empty and finite, and the image beside it is as ever."""
    _, made = exported
    run = run_onnx(made.path)
    images = torch.cat((pictures(1, (65, 97)), torch.full((1, 3, 65, 97), 114.0)))
    for ours, theirs in zip(run(images), run(images[:1]), strict=True):
        torch.testing.assert_close(ours[:1], theirs, rtol=0, atol=1e-3)
        assert ours.isfinite().all()


@slow
def test_images_without_proposals(tmp_path):
    model = detector('mask', test_cfg__rpn__min_bbox_size=1000)
    made = export_whole(model, tmp_path / 'net.onnx', size=(64, 96))
    assert not any(row.results for row in made.rows)
    outputs = run_onnx(made.path)(pictures(2, (65, 97)))
    assert [tuple(out.shape) for out in outputs] == [(2, 20, 5), (2, 20), (2, 20, 28, 28)]
    assert (outputs[1] == -1).all()
    assert not outputs[0].any()
    assert not outputs[2].any()


@each_kind
def test_in_openvino(exported):
    pytest.importorskip('openvino', reason='requirements/extras.txt is not installed')
    model, made = exported
    rows = rows_of(model, made.network, checking.run_openvino(made.path))
    limits = {'unmatched': 0.0, 'boxes': 1e-2, 'scores': 1e-4, 'masks': 1e-3}
    assert [row for row in rows if not row.value <= limits[row.name]] == []
