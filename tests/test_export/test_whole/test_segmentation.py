"""Whole segmentors, against what mmseg's `predict` answers."""

import pytest
import torch

from mmext_backbones.export.whole import export_whole
from mmext_backbones.export.whole.checking import pictures
from mmext_backbones.export.whole.segmentation import build
from mmext_backbones.export.writing import run_onnx
from mmext_backbones.utils.errors import UserError

from .models import CHANNELS, predicted, segmentor

pytest.importorskip('mmseg')

PYRAMID = {'in_channels': CHANNELS, 'in_index': [0, 1, 2, 3]}
FPN = {'type': 'FPN', 'in_channels': CHANNELS, 'out_channels': 8, 'num_outs': 4}
OVER_FPN = {'type': 'FPNHead', 'in_channels': [8] * 4, 'in_index': [0, 1, 2, 3], 'feature_strides': [4, 8, 16, 32]}
LAST = {'in_channels': CHANNELS[-1], 'in_index': 3}
JOINED = {**PYRAMID, 'input_transform': 'resize_concat'}
# name -> decode head, neck
SEGMENTORS = {
    'UPerHead': ({'type': 'UPerHead', **PYRAMID}, None),
    'UPerHead, corners aligned': ({'type': 'UPerHead', **PYRAMID, 'align_corners': True}, None),
    'UPerHead, one class': (
        {'type': 'UPerHead', **PYRAMID, 'num_classes': 2, 'out_channels': 1, 'threshold': 0.4},
        None,
    ),
    'FPNHead': (OVER_FPN, FPN),
    'FPNHead, corners aligned': ({**OVER_FPN, 'align_corners': True}, FPN),
    'FCNHead': ({'type': 'FCNHead', **LAST}, None),
    'FCNHead, maps joined': ({'type': 'FCNHead', **JOINED, 'concat_input': False, 'num_convs': 1}, None),
    'FCNHead, separable': ({'type': 'DepthwiseSeparableFCNHead', **LAST, 'norm_cfg': {'type': 'SyncBN'}}, None),
    'PSPHead': ({'type': 'PSPHead', **LAST}, None),
}
BATCHES = [(1, (65, 97)), (2, (33, 40)), (3, (64, 64)), (1, (7, 41))]


@pytest.mark.parametrize('name', SEGMENTORS)
def test_it_is_mmseg_s_prediction(name):
    head, neck = SEGMENTORS[name]
    model = segmentor(head, neck)
    task, seen = build(model), set()
    assert type(model.decode_head).__name__ == head['type']  # as it was
    for batch, size in BATCHES:
        inputs, samples = predicted(model, pictures(batch, size), task.new_sample)
        with torch.no_grad():
            classes, logits = task(inputs, size)
        assert classes.shape == (batch, *size)
        assert classes.dtype == torch.uint8
        own = torch.stack([sample.pred_sem_seg.data[0] for sample in samples])
        assert (classes != own).float().mean() < 1e-3  # where two classes are equal but for rounding
        seen |= set(own.flatten().tolist())
        assert logits.shape[:2] == (batch, model.decode_head.out_channels)
        rows = task.compare(samples, (classes, logits), size)
        assert [row.name for row in rows] == ['segmentation', 'logits']
        assert all(0 <= row.value < 2e-6 for row in rows)  # float32 in another order
    assert len(seen) > 1


def test_what_differs_is_seen():
    for name in ('UPerHead', 'UPerHead, one class'):
        task = build(segmentor(*SEGMENTORS[name]))
        inputs, samples = predicted(segmentor(*SEGMENTORS[name]), pictures(2, (40, 70)), task.new_sample)
        with torch.no_grad():
            classes, logits = task(inputs, (40, 70))
        other = classes.clone()
        other[1, 39, 69] = 1 - other[1, 39, 69] if len(name) > 8 else (other[1, 39, 69] + 1) % 5
        assert [row.value > row.limit for row in task.compare(samples, (other, logits), (40, 70))] == [True, False]
        assert [row.value > row.limit for row in task.compare(samples, (classes, logits + 0.01), (40, 70))] == [
            False,
            True,
        ]


def test_more_classes_than_a_byte_holds():
    task = build(segmentor({'type': 'FCNHead', **LAST, 'num_classes': 257}))
    with torch.no_grad():
        assert task(torch.randn(1, 3, 64, 64), (60, 64))[0].dtype == torch.int32


def test_what_the_file_says():
    assert build(segmentor(*SEGMENTORS['FPNHead'])).settings() == {
        'align_corners': False,
        'original_size': {'logits': True},
    }
    assert build(segmentor(*SEGMENTORS['UPerHead, one class'])).settings()['threshold'] == 0.4


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'head': {'type': 'SegformerHead', **PYRAMID}},
            'its decode head is a SegformerHead.*UPerHead, FPNHead, FCNHead, PSPHead',
        ),
        ({'head': {'type': 'FCNHead', **LAST}, 'mode': 'slide'}, "mode='slide'.* model.test_cfg.mode=whole"),
    ],
)
def test_what_is_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        build(segmentor(**options))


def test_a_head_that_computes_something_else_is_refused():
    model = segmentor({'type': 'FCNHead', **LAST})
    head = type(model.decode_head)
    model.decode_head.__class__ = type('Trained', (head,), {'loss': lambda self: None})
    build(model)
    model.decode_head.__class__ = type('Twice', (head,), {'forward': lambda self, x: 2 * head.forward(self, x)})
    with pytest.raises(UserError, match='its decode head is a Twice'):
        build(model)
    model.__class__ = type('Averaged', (type(model),), {'inference': lambda self, *args: None})
    with pytest.raises(UserError, match=r'its model is a Averaged.*EncoderDecoder'):
        build(model)


TWO = {'in_channels': CHANNELS[:2], 'in_index': [0, 1]}  # the first maps alone, which are recorded soon
FILES = {
    'UPerHead': ({'type': 'UPerHead', **TWO, 'align_corners': True}, None),
    'FPNHead': ({**OVER_FPN, 'in_channels': [8, 8], 'in_index': [0, 1], 'feature_strides': [4, 8]}, None),
    'FCNHead': (
        {'type': 'FCNHead', **TWO, 'input_transform': 'resize_concat', 'num_classes': 2, 'out_channels': 1},
        None,
    ),
}
FILES['FPNHead'] = (FILES['FPNHead'][0], {**FPN, 'in_channels': CHANNELS[:2], 'num_outs': 2})


@pytest.mark.parametrize(
    'name', ['UPerHead', *(pytest.param(name, marks=pytest.mark.slow) for name in ('FPNHead', 'FCNHead'))]
)
def test_one_file_for_any_size_and_batch(name, tmp_path):
    for package in ('onnx', 'onnxruntime', 'onnxscript'):
        pytest.importorskip(package, reason='requirements/extras.txt is not installed')
    model = segmentor(*FILES[name], out_indices=(0, 1))
    made = export_whole(model, tmp_path / 'net.onnx', size=(64, 96), sizes=[(64, 96), (65, 97), (33, 201)])
    assert {(row.images, row.size) for row in made.rows} >= {(1, (64, 96)), (3, (65, 97)), (2, (33, 201))}
    assert all(0 <= row.value < 1e-5 for row in made.rows)  # float32 in another order
    classes, logits = run_onnx(made.path)(pictures(2, (41, 70)))
    assert (classes.dtype, classes.shape) == (torch.uint8, (2, 41, 70))
    assert logits.shape == (2, model.decode_head.out_channels, 16, 24)  # a quarter of 64 x 96, with the padding
