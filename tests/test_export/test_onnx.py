"""One ONNX file a family, for any size and any number of images, in standard operators."""

import json
import threading

import pytest
import torch

from mmext_backbones import __version__
from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.export import ParityError, export_onnx
from mmext_backbones.export import writing as writing_module

from ..test_backbones.test_contract import image
from .networks import SIZES, network, smallest

onnx = pytest.importorskip('onnx', reason='requirements/extras.txt is not installed')
onnxruntime = pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')
pytest.importorskip('onnxscript', reason='requirements/extras.txt is not installed')

each_family = pytest.mark.parametrize(
    'exported',
    [
        SwinTransformer,
        *(pytest.param(cls, marks=pytest.mark.slow) for cls in (ELSASwin, MaxViT, Sequencer2D, VOLO, ELSAVOLO)),
    ],
    indirect=True,
)


@pytest.fixture(scope='module')
def exported(request, tmp_path_factory):
    model = network(request.param)
    metadata = {'arch': 'small', 'mean': [1.0, 2.0, 3.0]}
    made = export_onnx(model, tmp_path_factory.mktemp('onnx') / 'net.onnx', size=(64, 96), metadata=metadata)
    return model.eval(), made


def run(path, x):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return [torch.from_numpy(out) for out in session.run(None, {'image': x.numpy()})]


@each_family
@pytest.mark.parametrize('batch', [1, 2])
def test_every_size_and_batch(exported, batch):
    model, made = exported
    for size in [*SIZES, (7, 41), (1, 1)]:  # the last two of a single row of tokens
        x = image(*size, batch=batch)
        with torch.no_grad():
            expected = model(x)
        for actual, wanted in zip(run(made.path, x), expected, strict=True):
            # float32 in another order; the maps are normed or of about 1
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)


@each_family
def test_what_stands_in_the_file(exported):
    model, made = exported
    file = onnx.load(made.path)
    onnx.checker.check_model(file, full_check=True)
    assert {opset.domain for opset in file.opset_import} == {''}
    assert not file.functions
    kinds = [node.op_type for node in file.graph.node]
    assert kinds.count('LSTM') == (2 * 2 if isinstance(model, Sequencer2D) else 0)
    assert 'Loop' not in kinds

    names = [dim.dim_param or dim.dim_value for dim in file.graph.input[0].type.tensor_type.shape.dim]
    assert names == ['batch', 3, 'height', 'width']
    outputs = [[dim.dim_param for dim in out.type.tensor_type.shape.dim] for out in file.graph.output]
    assert outputs[0] == ['batch', '', 'map0_height', 'map0_width']
    facts = {prop.key: json.loads(prop.value) for prop in file.metadata_props if prop.key.startswith('mmext_backbones')}
    assert facts == {
        'mmext_backbones.version': __version__,
        'mmext_backbones.backbone': type(model).__name__,
        'mmext_backbones.neck': None,
        'mmext_backbones.in_channels': 3,
        'mmext_backbones.channels': list(model.out_channels),
        'mmext_backbones.strides': list(model.out_strides),
        'mmext_backbones.size': 'any',
        'mmext_backbones.arch': 'small',
        'mmext_backbones.mean': [1.0, 2.0, 3.0],
    }


@each_family
def test_three_sizes_were_run(exported):
    _, made = exported
    assert {row.size for row in made.differences} == {(64, 96), (41, 109), (85, 49)}
    assert all(0 <= row.relative < 1e-5 for row in made.differences)


def test_one_size_while_others_use_the_network(tmp_path):
    model = smallest().train()
    x = image(64, 96)
    with torch.no_grad():
        expected = model(x)
    made = {}
    export = threading.Thread(
        target=lambda: made.update(file=export_onnx(model, tmp_path / 'net.onnx', size=(64, 96), dynamic=False))
    )
    export.start()
    runs = 0
    while export.is_alive():
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        runs += 1
    export.join()
    assert runs
    assert {row.size for row in made['file'].differences} == {(64, 96)}
    assert all(module.training for module in model.modules())
    assert {module.backend for module in model.modules() if hasattr(module, 'backend')} == {'auto'}
    with pytest.raises(Exception, match='Got invalid dimensions'):
        run(tmp_path / 'net.onnx', image(64, 64))


def test_a_file_that_differs_is_refused(tmp_path, monkeypatch):
    path = tmp_path / 'net.onnx'
    path.write_text('of before')
    load = writing_module.run_onnx
    monkeypatch.setattr(writing_module, 'run_onnx', lambda path: lambda x: [out * 1.001 for out in load(path)(x)])
    with pytest.raises(ParityError, match=r'more than 0.0001 of their largest value, map0 at 64 x 96 by 1.0e-03'):
        export_onnx(smallest(), path, size=(64, 96), dynamic=False)
    assert path.read_text() == 'of before'
    assert sorted(file.name for file in tmp_path.iterdir()) == ['net.differs.onnx', 'net.onnx']


def test_without_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(writing_module, 'find_spec', lambda name: None if name == 'onnxscript' else object())
    with pytest.raises(ImportError, match=r'ONNX needs onnxscript: pip install "mmext_backbones\[export\]"'):
        export_onnx(smallest(), tmp_path / 'net.onnx')


@pytest.mark.parametrize(
    ('model', 'error', 'message'),
    [
        (lambda: torch.nn.Conv2d(3, 4, 1), TypeError, 'Conv2d is no backbone'),
        (lambda: smallest().double(), ValueError, 'is torch.float64: a file computes in float32'),
        (lambda: smallest().to('meta'), ValueError, 'is on meta: move the model'),
    ],
    ids=['no backbone', 'float64', 'device'],
)
def test_what_cannot_be_exported(tmp_path, model, error, message):
    with pytest.raises(error, match=message):
        export_onnx(model(), tmp_path / 'net.onnx')


def test_a_network_that_asks_for_the_size(tmp_path):
    class Asking(torch.nn.Module):
        def forward(self, maps):
            return [x if x.shape[2] > 40 else -x for x in maps]

    message = r'SwinTransformer with Asking decides by the size of the image.*\n.*\(dynamic=False, --static\)'
    with pytest.raises(ValueError, match=message):
        export_onnx(smallest(), tmp_path / 'net.onnx', neck=Asking())


def test_autocast_is_refused(tmp_path):
    model = smallest()
    model.autocast_dtype = 'bfloat16'
    with pytest.raises(ValueError, match='autocast_dtype=None'):
        export_onnx(model, tmp_path / 'net.onnx')
