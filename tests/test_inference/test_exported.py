"""Predictor(runtime=...): a file in place of the network, with the same predictions."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmext_backbones import export
from mmext_backbones.export import ParityError
from mmext_backbones.inference import Predictor, exported
from mmext_backbones.utils.errors import UserError

pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')
pytest.importorskip('onnxscript', reason='requirements/extras.txt is not installed')


def files(weights):
    return sorted(Path(weights).parent.glob(f'{Path(weights).stem}.*.onnx'))


@pytest.mark.parametrize('task', ['classification', pytest.param('detection', marks=pytest.mark.slow)])
def test_as_the_network(task, made, predictors, pictures, capsys, monkeypatch):
    config, weights = made(task)
    by_file = Predictor(config, weights, runtime='onnxruntime')
    (path,) = files(weights)
    printed = capsys.readouterr().out
    assert 'is exported for onnxruntime, this once' in printed
    assert f'{path}: compared with the model, largest differences: ' in printed
    monkeypatch.setattr(export, 'export_whole', None)  # nothing is exported twice
    again = Predictor(config, weights, runtime='onnxruntime')
    assert f'{path}: exported before, run by onnxruntime' in capsys.readouterr().out
    assert (by_file.name, by_file.task, by_file.classes) == (predictors(task).name, task, predictors(task).classes)
    for predictor, size in ((by_file, 1), (again, 3)):
        for got, expected in zip(predictor.predict(pictures, size), predictors(task).predict(pictures), strict=True):
            assert got.size == expected.size
            np.testing.assert_allclose(got.scores, expected.scores, atol=1e-5)
            np.testing.assert_array_equal(got.labels, expected.labels)
            if task == 'detection':
                np.testing.assert_allclose(got.boxes, expected.boxes, atol=1e-2)
                assert (got.masks != expected.masks).mean() < 1e-3


def test_other_weights_are_another_file(made, tmp_path, monkeypatch):
    config, weights = made('classification')
    written = []
    monkeypatch.setattr(export, 'export_whole', lambda model, path, **options: written.append(path) or Made())
    content = torch.load(weights, weights_only=True)
    for change in (0.0, 0.0, 1e-6):
        name = next(name for name, value in content['state_dict'].items() if value.is_floating_point())
        content['state_dict'][name] = content['state_dict'][name] + change
        torch.save(content, tmp_path / 'weights.pth')
        Predictor(config, tmp_path / 'weights.pth', runtime='onnxruntime')
    assert written[0] == written[1] != written[2]
    assert {path.parent for path in written} == {tmp_path}


class Made:
    rows = ()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'runtime': 'tensorrt'}, "runtime 'tensorrt': expected torch, onnxruntime, openvino"),
        ({'runtime': 'onnxruntime', 'tta': True}, 'several views of a picture .* not for onnxruntime'),
        ({'runtime': 'onnxruntime', 'device': 'cuda'}, 'onnxruntime computes on the CPU here'),
    ],
)
def test_messages(options, message, made):
    with pytest.raises(UserError, match=message):
        Predictor(*made('classification'), **options)


def test_a_runtime_that_is_not_installed(made, monkeypatch):
    monkeypatch.setattr(exported, 'find_spec', lambda name: None if name == 'openvino' else sys)
    with pytest.raises(UserError, match='pip install openvino'):
        Predictor(*made('classification'), runtime='openvino')


def test_a_head_that_no_file_holds(made, monkeypatch, tmp_path):
    """What the export refuses is said as it is."""

    def refuse(*args, **options):
        raise ParityError('it differs')

    monkeypatch.setattr(export, 'export_whole', refuse)
    config, weights = made('classification')
    shutil.copy(weights, tmp_path / 'w.pth')
    with pytest.raises(UserError, match='the model cannot be run by onnxruntime: it differs'):
        Predictor(config, tmp_path / 'w.pth', runtime='onnxruntime')
