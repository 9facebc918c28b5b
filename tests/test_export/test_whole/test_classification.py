"""Whole classifiers, against what mmpretrain's `predict` answers."""

import pytest
import torch

from mmext_backbones.backbones import ELSASwin, MaxViT, Sequencer2D
from mmext_backbones.export.whole import export_whole
from mmext_backbones.export.whole.checking import pictures
from mmext_backbones.export.whole.classification import build
from mmext_backbones.export.writing import run_onnx
from mmext_backbones.utils.errors import UserError

from ...test_backbones.test_contract import SMALL, VOLO_ARCH
from .models import SWIN, classifier, predicted

pytest.importorskip('mmpretrain')

GAP = {'type': 'GlobalAveragePooling'}
LINEAR = {'type': 'LinearClsHead', 'in_channels': 128}


def backbone(cls, **arch):
    return {'type': f'mmext_backbones.{cls}', 'arch': arch, 'out_indices': (3,)}


ONE_EACH = {'depths': (1, 1, 1, 1)}
VOLO = {**backbone('VOLO', **{**VOLO_ARCH, **ONE_EACH}), 'pyramid': False}
# name -> head, backbone (a Swin when None), neck
CLASSIFIERS = {
    'LinearClsHead': (LINEAR, None, GAP),
    'as published': (LINEAR, {**backbone('SwinTransformer', **SWIN), 'shift_single_window': False}, GAP),
    'ELSA-Swin': (LINEAR, backbone('ELSASwin', **{**SMALL[ELSASwin], **ONE_EACH}), GAP),
    'MultiLabelLinearClsHead': ({**LINEAR, 'type': 'MultiLabelLinearClsHead', 'thr': 0.3}, None, GAP),
    'StackedLinearClsHead': (
        {'type': 'StackedLinearClsHead', 'in_channels': 128, 'mid_channels': [6], 'norm_cfg': {'type': 'BN1d'}},
        None,
        GAP,
    ),
    'LinearNeck': (
        {'type': 'LinearClsHead', 'in_channels': 6},
        None,
        {'type': 'LinearNeck', 'in_channels': 128, 'out_channels': 6, 'gap_dim': 2},
    ),
    'MaxViTClsHead': (
        {'type': 'mmext_backbones.MaxViTClsHead', 'in_channels': 96},
        backbone('MaxViT', **{**SMALL[MaxViT], **ONE_EACH}),
        None,
    ),
    'SequencerClsHead': (
        {'type': 'mmext_backbones.SequencerClsHead', 'in_channels': 32},
        backbone('Sequencer2D', **{**SMALL[Sequencer2D], **ONE_EACH}),
        None,
    ),
    'VOLOClsHead': ({'type': 'mmext_backbones.VOLOClsHead', 'in_channels': 64, 'num_heads': 2}, VOLO, None),
}
SHALLOW = {**SWIN, 'depths': (2, 1, 1, 1)}  # with a shift
FILES = {
    'as published': (
        {**LINEAR, 'in_channels': 16},
        {**backbone('SwinTransformer', **SHALLOW), 'shift_single_window': False, 'out_indices': (0,)},
        GAP,
    ),
    'VOLOClsHead': CLASSIFIERS['VOLOClsHead'],
}
BATCHES = [(1, (65, 97)), (2, (33, 40)), (3, (64, 64)), (1, (7, 41))]


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_it_is_mmpretrain_s_prediction(name):
    model = classifier(*CLASSIFIERS[name])
    task = build(model)
    for batch, size in BATCHES:
        inputs, samples = predicted(model, pictures(batch, size), task.new_sample)
        with torch.no_grad():
            (scores,) = task(inputs, size)
        assert scores.shape == (batch, 7)
        # the same operators on the same numbers
        torch.testing.assert_close(scores, torch.stack([sample.pred_score for sample in samples]), rtol=1e-6, atol=1e-7)
        (row,) = task.compare(samples, (scores,), size)
        assert row.value < 1e-6
        (row,) = task.compare(samples, (scores + 0.001,), size)
        assert row.value > row.limit


def test_what_the_file_says():
    assert build(classifier(*CLASSIFIERS['LinearClsHead'])).settings() == {'multi_label': False}
    assert build(classifier(*CLASSIFIERS['MultiLabelLinearClsHead'])).settings() == {
        'multi_label': True,
        'score_thr': 0.3,
        'topk': None,
    }


def test_what_is_refused_by_name():
    with pytest.raises(UserError, match=r'its head is a ConformerHead.*LinearClsHead, MultiLabelLinearClsHead'):
        build(classifier({'type': 'ConformerHead', 'in_channels': [8, 8]}))
    model = classifier(LINEAR, None, GAP)
    head, model.head = model.head, None
    with pytest.raises(UserError, match='it has no head'):
        build(model)
    model.head = head
    model.__class__ = type('Averaged', (type(model),), {'predict': lambda self, *args: None})
    with pytest.raises(UserError, match=r'its model is a Averaged.*ImageClassifier'):
        build(model)


@pytest.mark.parametrize('name', ['as published', pytest.param('VOLOClsHead', marks=pytest.mark.slow)])
def test_one_file_for_any_size_and_batch(name, tmp_path):
    for package in ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(package, reason='requirements/extras.txt is not installed')
    sizes = [(64, 96), (65, 97), (28, 21)]  # of the last the maps of a Swin are within a window
    made = export_whole(classifier(*FILES[name]), tmp_path / 'net.onnx', size=(64, 96), sizes=sizes)
    assert {(row.images, row.size) for row in made.rows} >= {(1, (64, 96)), (3, (65, 97)), (2, (28, 21))}
    assert all(0 <= row.value < 1e-5 for row in made.rows)  # float32 in another order
    (scores,) = run_onnx(made.path)(pictures(2, (41, 70)))
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(2))
