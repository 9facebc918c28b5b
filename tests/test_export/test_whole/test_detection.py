"""Whole detectors: what is expressed anew is what mmdet predicts, before anything is exported."""

import pytest
import torch

from mmext_backbones.export.whole import whole_network
from mmext_backbones.export.whole.checking import pictures, predict
from mmext_backbones.utils.errors import UserError

from .detectors import BATCHES, BOX_HEAD, CONV_HEAD, SWIN, counts, detector, pooling, rows_of

pytest.importorskip('mmdet')

AVERAGED = {**BOX_HEAD, 'type': 'BBoxHead', 'with_avg_pool': True}
AVERAGED.pop('fc_out_channels')
SEPARATE = {
    **CONV_HEAD,
    'num_shared_fcs': 0,
    'num_cls_convs': 1,
    'num_reg_convs': 1,
    'num_cls_fcs': 1,
    'num_reg_fcs': 1,
}
VARIANTS = {
    'mask': ('mask', {}),
    'cascade': ('cascade', {}),
    'retina': ('retina', {}),
    'faster': ('faster', {}),
    'class-agnostic': (
        'mask',
        {'roi_head__bbox_head__reg_class_agnostic': True, 'roi_head__mask_head__class_agnostic': True},
    ),
    'averaged features': ('faster', {'roi_head__bbox_head': AVERAGED}),
    'branches of their own': ('faster', {'roi_head__bbox_head': SEPARATE}),
    'suppression over classes': ('faster', {'test_cfg__rcnn__nms': {'iou_threshold': 0.5, 'class_agnostic': True}}),
    'suppression over classes, one stage': ('retina', {'test_cfg__nms__class_agnostic': True}),
    'many boxes': ('retina', {'test_cfg__nms__split_thr': 100}),
    'many boxes of two stages': ('faster', {'test_cfg__rcnn__nms__split_thr': 10, 'test_cfg__rpn__nms__split_thr': 90}),
    'softmax': (
        'retina',
        {'bbox_head__loss_cls': {'type': 'CrossEntropyLoss', 'use_sigmoid': False}},
    ),
    'softmax proposals': ('faster', {'rpn_head__loss_cls': {'type': 'CrossEntropyLoss', 'use_sigmoid': False}}),
    'more convolutions': ('faster', {'rpn_head__num_convs': 2}),
    'boxes of any size': ('faster', {'test_cfg__rpn__min_bbox_size': -1}),
    'large boxes': ('faster', {'test_cfg__rpn__min_bbox_size': 20}),
    'fewer boxes than rows': ('faster', {'test_cfg__rpn__nms_pre': 2, 'test_cfg__rcnn__max_per_img': 300}),
    'bilinear masks': ('mask', {'roi_head__mask_head__upsample_cfg': {'type': 'bilinear', 'scale_factor': 2}}),
    'one level': (
        'faster',
        {
            'roi_head__bbox_roi_extractor': {**pooling(7), 'featmap_strides': [8]},
            'neck__start_level': 1,
            'neck__end_level': 1,
            'neck__num_outs': 1,
            'rpn_head__anchor_generator__strides': [8],
        },
    ),
    'a Swin': ('mask', {'backbone': SWIN}),
    'no padding': ('retina', {'data_preprocessor__pad_size_divisor': 1, 'data_preprocessor__bgr_to_rgb': False}),
}


@pytest.mark.parametrize('name', VARIANTS)
def test_it_is_mmdet_s_prediction(name):
    kind, edits = VARIANTS[name]
    model = detector(kind, **edits)
    network = whole_network(model)
    with torch.no_grad():
        rows = rows_of(model, network, network)
    limits = {'unmatched': 0.0, 'boxes': 1e-3, 'scores': 1e-5, 'masks': 0.0}  # products of other numbers of rows
    assert {row.name for row in rows} == set(limits) - ({'masks'} if kind not in ('mask', 'cascade') else set())
    assert [row for row in rows if not row.value <= limits[row.name]] == []
    assert all(row.results >= 2 * row.images for row in rows)


def test_rows_are_as_promised():
    model = detector('mask')
    images = pictures(2, (65, 97))
    with torch.no_grad():
        dets, labels, masks = whole_network(model)(images)
    assert (dets.shape, dets.dtype) == ((2, 20, 5), torch.float32)
    assert (labels.shape, labels.dtype) == ((2, 20), torch.int64)
    assert (masks.shape, masks.dtype) == ((2, 20, 28, 28), torch.float32)
    for n, sample in enumerate(predict(model, whole_network(model), images)):
        found = sample.pred_instances
        assert labels[n].tolist() == found.labels.tolist() + [-1] * (20 - len(found))
        torch.testing.assert_close(dets[n, : len(found), :4], found.bboxes, rtol=0, atol=1e-3)
        assert not dets[n, len(found) :].any()
        assert not masks[n, len(found) :].any()


@pytest.mark.parametrize('kind', ['mask', 'cascade', 'retina'])
def test_images_without_objects(kind):
    where = 'test_cfg__score_thr' if kind == 'retina' else 'test_cfg__rcnn__score_thr'
    model = detector(kind, **{where: 0.9999})
    network = whole_network(model)
    assert counts(model, network, 2, (65, 97)) == [0, 0]
    with torch.no_grad():
        outputs = network(pictures(2, (65, 97)))
    assert all(out.isfinite().all() for out in outputs)
    assert (outputs[1] == -1).all()
    assert not outputs[0].any()


def test_images_without_proposals():
    model = detector('mask', test_cfg__rpn__min_bbox_size=1000)
    network = whole_network(model)
    assert counts(model, network, 2, (65, 97)) == [0, 0]
    with torch.no_grad():
        assert (network(pictures(2, (65, 97)))[1] == -1).all()


@pytest.mark.parametrize('kind', ['faster', 'cascade', 'retina'])
def test_equal_scores(kind, monkeypatch):
    """Of equal scores the first is taken: what mmdet does where its sort keeps their order, as PyTorch's need not."""
    sort = torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor, 'sort', lambda x, dim=-1, **options: sort(x, dim=dim, **{**options, 'stable': True})
    )
    model = detector(kind)
    for name, tensor in model.named_parameters():
        if any(part in name for part in ('rpn_cls', 'retina_cls', 'fc_cls')):
            tensor.data.zero_()
    network = whole_network(model)
    with torch.no_grad():
        rows = rows_of(model, network, network)
    assert [row for row in rows if row.name == 'unmatched' and row.value] == []
    assert all(row.results for row in rows)


def test_the_model_stays_as_it_is():
    model = detector('mask').train()
    network = whole_network(model)
    assert model.training
    assert not network.training
    assert (
        network.task.detector.boxes[0].head.fc_cls.weight.data_ptr()
        == model.roi_head.bbox_head.fc_cls.weight.data_ptr()
    )


def test_normalised_images():
    model = detector('retina')
    raw, network = whole_network(model, raw=True), whole_network(model)
    images = pictures(2, BATCHES[0][1])
    with torch.no_grad():
        normalised = (images.flip(1) - model.data_preprocessor.mean) / model.data_preprocessor.std
        for ours, theirs in zip(raw(normalised), network(images), strict=True):
            assert torch.equal(ours, theirs)


REFUSED = {
    'soft_nms': ('faster', {'test_cfg__rcnn__nms': {'type': 'soft_nms', 'iou_threshold': 0.5}}, "type='soft_nms'"),
    'options of nms': ('faster', {'test_cfg__rcnn__nms__max_num': 5}, 'max_num'),
    'coder': ('faster', {'roi_head__bbox_head__bbox_coder': {'type': 'TBLRBBoxCoder'}}, 'bbox_head is a TBLRBBoxCoder'),
    'clip': (
        'retina',
        {'bbox_head__bbox_coder': {'type': 'DeltaXYWHBBoxCoder', 'clip_border': False}},
        'clip_border=False',
    ),
    'extractor': (
        'faster',
        {'roi_head__bbox_roi_extractor': {**pooling(7), 'type': 'GenericRoIExtractor'}},
        'bbox_roi_extractor is a GenericRoIExtractor: .* There is SingleRoIExtractor',
    ),
    'not aligned': (
        'mask',
        {'roi_head__mask_roi_extractor__roi_layer': {'type': 'RoIAlign', 'output_size': 14, 'aligned': False}},
        'mask_roi_extractor has aligned=False',
    ),
    'roi_pool': (
        'faster',
        {'roi_head__bbox_roi_extractor__roi_layer': {'type': 'RoIPool', 'output_size': 7}},
        'pools by RoIPool',
    ),
    'roi_head': (
        'faster',
        {'roi_head__type': 'DoubleHeadRoIHead', 'roi_head__reg_roi_scale_factor': 1.3},
        'DoubleHeadRoIHead',
    ),
    'carafe': (
        'mask',
        {
            'roi_head__mask_head__upsample_cfg': {
                'type': 'carafe',
                'scale_factor': 2,
                'up_kernel': 5,
                'up_group': 1,
                'encoder_kernel': 3,
                'encoder_dilation': 1,
                'compressed_channels': 8,
            }
        },
        "upsample_method='carafe'",
    ),
    'nms_pre': ('retina', {'test_cfg__nms_pre': -1}, 'nms_pre=-1'),
    'max_per_img': ('faster', {'test_cfg__rcnn__max_per_img': -1}, 'max_per_img=-1'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name):
    kind, edits, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        whole_network(detector(kind, **edits))


def test_other_heads_are_named():
    from mmdet.registry import MODELS

    atss = detector('retina')
    head = {'type': 'ATSSHead', 'num_classes': 5, 'in_channels': 16, 'stacked_convs': 1, 'feat_channels': 32}
    atss.bbox_head = MODELS.build({**head, 'test_cfg': atss.bbox_head.test_cfg})
    with pytest.raises(UserError, match=r'bbox_head is a ATSSHead: .* There is RetinaHead'):
        whole_network(atss)
    with pytest.raises(UserError, match='Linear is no model of mmdet'):
        whole_network(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match='model is a FasterRCNN'):
        whole_network(changed(detector('faster')))
    without = detector('faster')
    without.rpn_head = None
    with pytest.raises(UserError, match=r'model is a FasterRCNN: .* with an RPNHead'):
        whole_network(without)


def changed(model):
    """The model as one of a class that predicts in its own way."""
    model.__class__ = type('FasterRCNN', (type(model),), {'predict': lambda self, *args, **options: None})
    return model


def test_a_class_that_changes_the_training_alone_is_exported():
    model = detector('mask')
    head = model.roi_head
    head.__class__ = type('MyRoIHead', (type(head),), {'loss': lambda self, *args: {}})
    assert whole_network(model).outputs == ('dets', 'labels', 'masks')
