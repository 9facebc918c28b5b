"""Suppression and overlaps of boxes through mmcv's own functions, against mmcv as compiled and against plain loops."""

import numpy as np
import pytest
import torch
from mmcv import ops

from tests.test_mmcv_ops.vectors import vectors

HALVES = [torch.float16, torch.bfloat16]


def random_boxes(num, size=1000.0, edge=120.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=rng) * size
    scores = (1 + torch.randperm(num, generator=rng)) / (num + 1)  # no two are equal
    return torch.cat((corner, corner + torch.rand(num, 2, generator=rng) * edge), 1), scores


def same_order(case, dets, keep):
    """Boxes and scores as compiled, and the same indices but for those of equal scores."""
    expected = vectors(case)
    torch.testing.assert_close(dets[:, 4], expected['dets'][:, 4], rtol=0, atol=1e-6)
    assert keep.dtype == torch.int64
    for score in expected['dets'][:, 4].unique():
        equal = expected['dets'][:, 4] == score
        assert sorted(keep[equal].tolist()) == sorted(expected['keep'][equal].tolist())


def overlap(a, b, offset=0):
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0.0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def plain_nms(boxes, scores, threshold, offset):
    boxes, kept = boxes.tolist(), []
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(boxes[i], boxes[j], offset) <= threshold for j in kept):
            kept.append(i)
    return kept


def plain_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset):
    boxes, scores, kept = boxes.tolist(), dict(enumerate(scores.tolist())), []
    while scores:
        best = max(scores, key=scores.get)
        kept.append((best, scores.pop(best)))
        for i in list(scores):
            iou = overlap(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                scores[i] *= np.exp(-(iou**2) / sigma)
            elif iou >= threshold:
                scores[i] *= 1 - iou if method == 'linear' else 0
            if scores[i] < min_score:
                del scores[i]
    return kept


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_as_compiled(offset):
    v = vectors(f'nms_offset{offset}')
    dets, keep = ops.nms(v['boxes'], v['scores'], v['iou_threshold'].item(), offset=offset)
    same_order(f'nms_offset{offset}', dets, keep)
    torch.testing.assert_close(dets[:, :4], v['boxes'][keep], rtol=0, atol=0)


def test_nms_of_the_best_scores():
    v = vectors('nms_score_max')
    same_order('nms_score_max', *ops.nms(v['boxes'], v['scores'], 0.4, score_threshold=0.3, max_num=20))


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.7])
@pytest.mark.parametrize('offset', [0, 1])
def test_nms_against_loops(offset, threshold):
    boxes, scores = random_boxes(300, size=200.0)
    assert ops.nms(boxes, scores, threshold, offset)[1].tolist() == plain_nms(boxes, scores, threshold, offset)


def test_an_overlap_at_the_threshold_is_kept():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 3.0]])  # 0.3, which is above 0.3 in float64
    for offset in (0, 1):
        found = ops.nms(boxes - torch.tensor([0.0, 0.0, offset, offset]), torch.tensor([0.9, 0.8]), 0.3, offset)[1]
        assert found.tolist() == [0, 1]


@pytest.mark.parametrize('method', ['linear', 'gaussian', 'naive'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_as_compiled(method, offset):
    case = f'soft_nms_{method}_offset{offset}'
    v = vectors(case)
    same_order(case, *ops.soft_nms(v['boxes'], v['scores'], 0.3, 0.5, 1e-3, method, offset))


@pytest.mark.parametrize('method', ['linear', 'gaussian', 'naive'])
@pytest.mark.parametrize('offset', [0, 1])
def test_soft_nms_against_loops(method, offset):
    boxes, scores = random_boxes(200, size=150.0)
    dets, keep = ops.soft_nms(boxes, scores, 0.3, 0.5, 0.05, method, offset)
    expected = plain_soft_nms(boxes.double(), scores.double(), 0.3, 0.5, 0.05, method, offset)
    assert keep.tolist() == [i for i, _ in expected]
    assert len(keep) < len(boxes)
    torch.testing.assert_close(dets[:, 4].double(), torch.tensor([s for _, s in expected]).double(), rtol=0, atol=1e-6)
    assert dets[:, :4].equal(boxes[keep])


def test_soft_nms_leaves_boxes_without_area_alone():
    boxes, scores = torch.zeros(3, 4), torch.tensor([0.5, 0.9, 0.7])
    for method in ('linear', 'gaussian', 'naive'):
        dets, keep = ops.soft_nms(boxes, scores, method=method)
        assert keep.tolist() == [1, 2, 0]
        assert dets[:, 4].equal(scores[keep])


def test_nms_match_as_compiled():
    v = vectors('nms_match')
    groups = ops.nms_match(torch.cat((v['boxes'], v['scores'][:, None]), 1), 0.5)
    expected = {}
    for group, index in zip(v['group'].tolist(), v['index'].tolist(), strict=True):
        expected.setdefault(group, []).append(index)
    assert sorted(map(sorted, (g.tolist() for g in groups))) == sorted(map(sorted, expected.values()))


def test_nms_match_against_loops():
    boxes, scores = random_boxes(200, size=150.0)
    left, expected = scores.argsort(descending=True).tolist(), []
    while left:
        expected.append([i for i in left if i == left[0] or overlap(boxes[left[0]], boxes[i]) >= 0.4])
        left = [i for i in left if i not in expected[-1]]
    assert [group.tolist() for group in ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.4)] == expected


@pytest.mark.parametrize(
    ('case', 'config'),
    [
        ('batched_nms', {'type': 'nms', 'iou_threshold': 0.5}),
        ('batched_soft_nms', {'type': 'soft_nms', 'iou_threshold': 0.3, 'min_score': 0.05}),
        ('batched_nms_split', {'type': 'nms', 'iou_threshold': 0.5, 'split_thr': 50}),
    ],
)
def test_batched_nms_as_compiled(case, config):
    v = vectors(case)
    same_order(case, *ops.batched_nms(v['boxes'], v['scores'], v['idxs'], config))


def test_bbox_overlaps_as_compiled():
    v = vectors('bbox_overlaps')
    torch.testing.assert_close(ops.bbox_overlaps(v['a'], v['b']), v['iou'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_bbox_overlaps_against_loops(mode, offset):
    a, b = random_boxes(20, size=100.0)[0].double(), random_boxes(20, size=100.0, seed=1)[0].double()
    b[3] = a[3]
    found = ops.bbox_overlaps(a, b, mode, offset=offset)
    assert ops.bbox_overlaps(a, b, mode, aligned=True, offset=offset).equal(found.diagonal())
    for i, first in enumerate(a.tolist()):
        for j, second in enumerate(b.tolist()):
            expected = overlap(first, second, offset)
            if mode == 'iof':  # common / first, from common / (first + second - common)
                areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (first, second)]
                expected = expected * sum(areas) / (1 + expected) / areas[0]
            assert found[i, j].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('dtype', [*HALVES, torch.float64])
def test_other_types(dtype):
    boxes, scores = random_boxes(100, size=200.0)
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    wide, wide_scores = boxes.double(), scores.double()
    config = {'type': 'nms', 'iou_threshold': 0.5}
    dets, keep = ops.nms(boxes, scores, 0.5)
    assert dets.dtype == dtype
    assert keep.equal(ops.nms(wide, wide_scores, 0.5)[1])
    dets, keep = ops.soft_nms(boxes, scores, min_score=0.1)
    expected, expected_keep = ops.soft_nms(wide, wide_scores, min_score=0.1)
    assert dets.dtype == dtype
    assert sorted(keep.tolist()) == sorted(expected_keep.tolist())
    torch.testing.assert_close(dets[:, 4].sort()[0], expected[:, 4].to(dtype).sort()[0])
    groups = ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.5)
    assert sorted(i for group in groups for i in group.tolist()) == list(range(100))
    torch.testing.assert_close(ops.bbox_overlaps(boxes, boxes), ops.bbox_overlaps(wide, wide).to(dtype))
    assert ops.batched_nms(boxes, scores, torch.zeros(100), config)[0].dtype == dtype


def test_no_boxes_one_box_equal_boxes():
    none, scores = torch.zeros(0, 4), torch.zeros(0)
    for found in (ops.nms(none, scores, 0.5), ops.soft_nms(none, scores)):
        assert [x.shape for x in found] == [(0, 5), (0,)]
    assert ops.nms_match(torch.zeros(0, 5), 0.5) == []
    assert ops.bbox_overlaps(none, torch.zeros(2, 4)).shape == (0, 2)
    box = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
    assert ops.nms(box, torch.ones(1), 0.5)[1].tolist() == [0]
    assert ops.soft_nms(box, torch.ones(1))[1].tolist() == [0]
    boxes, scores = box.repeat(5, 1), torch.full((5,), 0.5)
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == [0]
    assert ops.soft_nms(boxes, scores, method='naive')[1].tolist() == [0]
    assert [group.tolist() for group in ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.5)] == [[0, 1, 2, 3, 4]]


def test_arguments_are_left_as_they_were():
    boxes, scores = random_boxes(50, size=50.0)
    before = boxes.clone(), scores.clone()
    ops.nms(boxes, scores, 0.5, 1), ops.soft_nms(boxes, scores), ops.bbox_overlaps(boxes, boxes)
    ops.nms_match(torch.cat((boxes, scores[:, None]), 1), 0.5)
    assert boxes.equal(before[0])
    assert scores.equal(before[1])
