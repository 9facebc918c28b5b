"""tools/export.py, and what it builds: configs, necks, weights, messages."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from mmext_backbones.export import ParityError
from mmext_backbones.export.building import build_parts, load_weights
from mmext_backbones.export.recording import BackboneWithNeck
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.errors import UserError

CONFIG = """
default_scope = 'mmdet'
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[10.0, 20.0, 30.0], std=[1.0, 2.0, 3.0], bgr_to_rgb=True),
    backbone=dict(
        type='mmext_backbones.SwinTransformer',
        arch=dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)),
        out_indices=(0, 1),
    ),
    neck=dict(type='FPN', in_channels=[16, 32], out_channels=8, num_outs=3),
)
"""
SPEC = importlib.util.spec_from_file_location('export_tool', Path(__file__).parents[2] / 'tools' / 'export.py')
tool = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tool)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(CONFIG)
    return path


def random_checkpoint(config, path):
    parts = build_parts(str(config), neck=True)
    torch.manual_seed(3)
    weights = {
        name: torch.randn_like(value) * 0.05
        for name, value in BackboneWithNeck(parts.backbone, parts.neck).state_dict().items()
    }
    torch.save({'state_dict': weights}, path)
    return weights


@pytest.mark.slow
def test_backbone_and_neck_with_weights(config, tmp_path, capsys):
    pytest.importorskip('onnxscript', reason='requirements/extras.txt is not installed')
    onnxruntime = pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')
    weights = random_checkpoint(config, tmp_path / 'epoch_1.pth')
    out = tmp_path / 'net.onnx'
    arguments = [str(config), str(tmp_path / 'epoch_1.pth'), '--format', 'onnx', '--neck', '--size', '64', '96']
    assert tool.main([*arguments, '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    assert f'loaded       {len(weights):4}  of backbone and neck' in printed
    assert printed.count('map2') == 3

    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts['mmext_backbones.mean']) == [10.0, 20.0, 30.0]
    assert json.loads(facts['mmext_backbones.bgr_to_rgb']) is True
    assert json.loads(facts['mmext_backbones.neck']) == 'FPN'
    assert json.loads(facts['mmext_backbones.channels']) == [8, 8, 8]
    assert json.loads(facts['mmext_backbones.strides']) == [4, 8, 16]
    parts = build_parts(str(config), neck=True)
    network = BackboneWithNeck(parts.backbone, parts.neck).eval()
    network.load_state_dict(weights)
    x = torch.randn(2, 3, 75, 50)
    with torch.no_grad():
        for actual, expected in zip(session.run(None, {'image': x.numpy()}), network(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-5, atol=1e-5)

    with pytest.raises(UserError, match='exists already'):
        tool.main([*arguments, '--out', str(out)])


def test_the_backbone_of_a_whole_checkpoint(config, tmp_path):
    weights = random_checkpoint(config, tmp_path / 'epoch_1.pth')
    parts = build_parts(str(config))
    assert parts.neck is None
    assert parts.metadata['arch'] == {'embed_dims': 16, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
    load_weights(parts, str(tmp_path / 'epoch_1.pth'))
    for name, value in parts.backbone.state_dict().items():
        assert torch.equal(value, weights[f'backbone.{name}'])


def test_weights_without_the_neck_are_refused(config, tmp_path):
    weights = random_checkpoint(config, tmp_path / 'epoch_1.pth')
    alone = {name: value for name, value in weights.items() if name.startswith('backbone.')}
    torch.save(alone, tmp_path / 'backbone.pth')
    with pytest.raises(UserError, match=r'tensors are missing or of another shape \(neck\.'):
        load_weights(build_parts(str(config), neck=True), str(tmp_path / 'backbone.pth'))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['swin_x', '--format', 'onnx'], 'neither a backbone nor a config'),
        (['swin_t', '--format', 'onnx', '--neck'], 'swin_t is a backbone alone'),
        (['swin_t', '--format', 'onnx', '--batch', '2'], 'an ONNX file takes any number'),
        (['swin_t', '--format', 'torch', '--out', 'net.onnx'], r'net.onnx has to end in .pt2'),
        (['swin_t', '--format', 'torch', '--out', 'nowhere/net.pt2'], 'no folder that you may write to'),
        (['swin_t', 'none.pth', '--format', 'torch'], "checkpoint 'none.pth': there is no such file"),
        (['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '--format', 'torch'], 'its backbone is a ResNet'),
        (['swin_t', '--format', 'torch', '--cfg-options', 'autocast_dtype=bfloat16'], 'autocast_dtype=None'),
    ],
)
def test_messages(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli(tool.main, arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_config_without_a_neck(config, tmp_path):
    config.write_text(CONFIG.replace('    neck=', '    nick='))
    with pytest.raises(UserError, match='its model has no neck'):
        build_parts(str(config), neck=True)


def test_without_the_packages(monkeypatch, capsys):
    def missing():
        raise ImportError('ONNX needs onnx: pip install "mmext_backbones[export]"')

    monkeypatch.setattr(tool, 'check_packages', missing)
    assert run_cli(tool.main, ['swin_t', '--format', 'onnx']) == 2
    assert 'pip install "mmext_backbones[export]"' in capsys.readouterr().err


def test_exit_code_of_a_file_that_differs(monkeypatch, capsys, tmp_path):
    def differs(*args, **options):
        raise ParityError('1 of 3 maps differ')

    monkeypatch.setattr(tool, 'export_torch', differs)
    monkeypatch.chdir(tmp_path)
    assert run_cli(tool.main, ['swin_t', '--format', 'torch']) == 1
    assert '1 of 3 maps differ' in capsys.readouterr().err
