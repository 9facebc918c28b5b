"""tools/export.py --whole: a config and a checkpoint in, a file out; messages."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmext_backbones.export import ParityError
from mmext_backbones.export.whole import whole_network
from mmext_backbones.export.whole.checking import pictures
from mmext_backbones.export.whole.checking import predict as predictions
from mmext_backbones.inference.loading import load_model
from mmext_backbones.runtime import predict
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.errors import UserError

from ..test_tool import tool
from .detectors import DETECTORS, detector, edited

pytest.importorskip('mmdet')
CONFIGS = Path(__file__).parents[3] / 'configs'
PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True},
    {'type': 'LoadAnnotations', 'with_bbox': True},
    {'type': 'PackDetInputs'},
]
NAMES = ['cat', 'dog', 'cow', 'pig', 'hen']
ENTRIES = {
    'default_scope': 'mmdet',
    'test_dataloader': {'dataset': {'type': 'CocoDataset', 'pipeline': PIPELINE, 'metainfo': {'classes': NAMES}}},
    'test_evaluator': {'type': 'CocoMetric'},
    'test_cfg': {'type': 'TestLoop'},
}


def written(tmp_path, name='retina', **edits):
    path = tmp_path / 'small.py'
    model = edited(DETECTORS[name], {key.replace('__', '.'): value for key, value in edits.items()})
    Config({**ENTRIES, 'model': model}).dump(path)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': detector('retina').state_dict(), 'meta': {}}, path)
    return path


def test_what_is_built(tmp_path, checkpoint):
    config = written(tmp_path)
    loaded = load_model(str(config), str(checkpoint))
    assert loaded.notes == []
    assert loaded.metadata == {
        'classes': tuple(NAMES),
        'palette': loaded.metadata['palette'],
        'resize': {'scale': [96, 64], 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'cv2'},
        'weights_sha256': hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    for name, value in detector('retina').state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert load_model(str(config), None).notes == ['no weights were named, so the file holds random ones']


@pytest.mark.slow
def test_a_detector_with_weights(tmp_path, checkpoint, capsys):
    onnxruntime = pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')
    pytest.importorskip('onnxscript', reason='requirements/extras.txt is not installed')
    out = tmp_path / 'net.onnx'
    arguments = [str(written(tmp_path)), str(checkpoint), '--whole', '--size', '64', '96', '--out', str(out)]
    assert run_cli(tool.main, arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count('unmatched') == 6  # of five batches, and what is allowed
    assert '3x41x109, 60 results:  unmatched 0.0e+00' in printed
    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    whole = json.loads(session.get_modelmeta().custom_metadata_map['mmext_backbones.whole'])
    assert (whole['task'], whole['classes']) == ('detection', NAMES)
    assert [each.name for each in session.get_outputs()] == ['dets', 'labels']
    assert re.search(r'python \S*predict\.py \S*net\.onnx PICTURES runs it without PyTorch', printed)
    picture = pictures(1, (64, 96))[0].permute(1, 2, 0).numpy().astype('uint8')
    found = predict.Model(tmp_path / 'net.onnx').predict(picture)
    model = load_model(str(arguments[0]), str(checkpoint)).model
    (expected,) = (
        each.pred_instances
        for each in predictions(model, whole_network(model, False), torch.from_numpy(picture).permute(2, 0, 1)[None])
    )
    assert len(found['boxes']) == len(expected)
    torch.testing.assert_close(torch.from_numpy(found['scores']), expected.scores)
    torch.testing.assert_close(torch.from_numpy(found['boxes']), expected.bboxes, rtol=0, atol=1e-3)
    assert (tmp_path / 'predict.py').read_bytes() == Path(predict.__file__).read_bytes()
    assert run_cli(tool.main, arguments) == 2
    assert 'exists already' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--whole', '--neck'], '--neck is for backbones, not for --whole'),
        (['--whole', '--speed'], '--speed is for backbones'),
        (['--whole', '--format', 'torch'], '--format torch is for backbones'),
        (['--format', 'onnx', '--raw'], '--raw is for --whole'),
        (['--format', 'onnx', '--check', 'openvino'], '--check is for --whole'),
        ([], '--format is missing: onnx or torch, or --whole'),
        (['--whole', '--out', 'net.pt2'], 'has to end in .onnx'),
        (['--whole', '--cfg-options', 'model.test_cfg.nms.type=soft_nms'], "nms of the bbox_head has type='soft_nms'"),
        (['none.pth', '--whole'], "checkpoint 'none.pth': there is no such file"),
    ],
)
def test_messages(arguments, message, tmp_path, monkeypatch, capsys):
    config = written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run_cli(tool.main, [str(config), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [each.name for each in tmp_path.iterdir()] == ['small.py']


def test_a_backbone_alone_is_no_whole_model(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli(tool.main, ['swin_t', '--whole']) == 2
    assert 'swin_t' in capsys.readouterr().err


def test_without_openvino(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'find_spec', lambda name: None)
    assert run_cli(tool.main, [str(written(tmp_path)), '--whole', '--check', 'openvino']) == 2
    assert 'pip install openvino' in capsys.readouterr().err


def test_exit_code_of_a_file_that_differs(tmp_path, monkeypatch, capsys):
    def differs(*args, **options):
        raise ParityError('3 of 9 comparisons differ')

    monkeypatch.setattr(tool, 'export_whole', differs)
    monkeypatch.chdir(tmp_path)
    assert run_cli(tool.main, [str(written(tmp_path)), '--whole']) == 1
    assert '3 of 9 comparisons differ' in capsys.readouterr().err


def test_several_views_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile(written(tmp_path))
    resize = {'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True}
    views = {'type': 'TestTimeAug', 'transforms': [[resize], [{'type': 'PackDetInputs'}]]}
    config.test_dataloader.dataset.pipeline = [{'type': 'LoadImageFromFile'}, views]
    config.model = {
        'type': 'DetTTAModel',
        'tta_cfg': {'nms': {'type': 'nms', 'iou_threshold': 0.5}},
        'module': config.model,
    }
    config.dump(tmp_path / 'views.py')
    assert run_cli(tool.main, ['views.py', '--whole']) == 2
    assert 'model is a DetTTAModel' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('swin_t_maskrcnn_1x', ('dets', 'labels', 'masks')),
        ('swin_t_cascade_3x', ('dets', 'labels', 'masks')),
        ('maxvit_t_cascade_lsj', ('dets', 'labels', 'masks')),
        ('sequencer_s_retinanet_1x', ('dets', 'labels')),
        ('swin_t_atss_3x', 'bbox_head is a ATSSHead'),
        ('swin_t_sparsercnn_3x', 'rpn_head is a EmbeddingRPNHead'),
        ('swin_b_htc_6x', 'roi_head is a HybridTaskCascadeRoIHead'),
    ],
)
def test_our_recipes(name, found):
    model = load_model(str(CONFIGS / f'{name}.py'), None).model
    if isinstance(found, tuple):
        assert whole_network(model).outputs == found
    else:
        with pytest.raises(UserError, match=found):
            whole_network(model)
