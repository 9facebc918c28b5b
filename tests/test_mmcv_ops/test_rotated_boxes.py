"""Rotated boxes through mmcv's own functions, against mmcv as compiled and against polygons cut with each other."""

import math

import pytest
import torch
from mmcv import ops

from tests.test_mmcv_ops.vectors import vectors


def random_boxes(num, size=100.0, edge=60.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    centre, edges, angle = (torch.rand(num, n, generator=rng) for n in (2, 2, 1))
    return torch.cat((centre * size, edges * edge + 1, angle * 7 - 3.5), 1).double()


def corners(box):
    x, y, w, h, angle = box
    cos, sin = math.cos(angle), math.sin(angle)
    around = ((-w, -h), (w, -h), (w, h), (-w, h))
    return [(x + (u * cos - v * sin) / 2, y + (u * sin + v * cos) / 2) for u, v in around]


def area(polygon):
    pairs = zip(polygon, [*polygon[1:], *polygon[:1]], strict=True)
    return sum(x * v - u * y for (x, y), (u, v) in pairs) / 2


def cut(polygon, start, end):
    """What of a polygon is on the left of the line from start to end (Sutherland and Hodgman)."""

    def side(p):
        return (end[0] - start[0]) * (p[1] - start[1]) - (end[1] - start[1]) * (p[0] - start[0])

    found = []
    for p, q in zip(polygon, [*polygon[1:], *polygon[:1]], strict=True):
        a, b = side(p), side(q)
        if a >= 0:
            found.append(p)
        if a * b < 0:
            found.append(tuple(s + (t - s) * a / (a - b) for s, t in zip(p, q, strict=True)))
    return found


def overlap(a, b, mode='iou'):
    polygon, frame = corners(a), corners(b)
    for start, end in zip(frame, [*frame[1:], *frame[:1]], strict=True):
        polygon = cut(polygon, start, end)
    common = area(polygon) if polygon else 0.0
    return common / (a[2] * a[3] + (0 if mode == 'iof' else b[2] * b[3] - common))


def test_overlaps_as_compiled():
    v = vectors('box_iou_rotated')
    torch.testing.assert_close(ops.box_iou_rotated(v['a'], v['b']), v['iou'], rtol=0, atol=1e-6)


@pytest.mark.parametrize('mode', ['iou', 'iof'])
@pytest.mark.parametrize('clockwise', [True, False])
def test_overlaps_of_polygons(mode, clockwise):
    a, b = random_boxes(40), random_boxes(40, seed=1)
    b[0] = a[0]
    sign = 1 if clockwise else -1
    expected = [[overlap(i, j, mode) for j in (b * sign_of(sign)).tolist()] for i in (a * sign_of(sign)).tolist()]
    found = ops.box_iou_rotated(a, b, mode, clockwise=clockwise)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    paired = ops.box_iou_rotated(a, b, mode, aligned=True, clockwise=clockwise)
    torch.testing.assert_close(paired, found.diagonal(), rtol=0, atol=0)
    single = ops.box_iou_rotated(a.float(), b.float(), mode, clockwise=clockwise)
    torch.testing.assert_close(single.double(), found, rtol=0, atol=1e-5)  # angles up to 3.5 in float32


def sign_of(sign):
    return torch.tensor([1.0, 1.0, 1.0, 1.0, sign], dtype=torch.float64)


def test_more_pairs_than_are_computed_at_once(monkeypatch):
    from mmext_backbones.mmcv_ops import rotated_boxes

    a, b = random_boxes(30), random_boxes(23, seed=1)
    whole, paired = ops.box_iou_rotated(a, b), ops.box_iou_rotated(a[:23], b, aligned=True)
    kept = ops.nms_rotated(a, torch.arange(30.0).double(), 0.2)[1]
    for pairs in (1, 50, 100):
        monkeypatch.setattr(rotated_boxes, 'PAIRS', pairs)
        assert ops.box_iou_rotated(a, b).equal(whole)
        assert ops.box_iou_rotated(a[:23], b, aligned=True).equal(paired)
        assert ops.nms_rotated(a, torch.arange(30.0).double(), 0.2)[1].equal(kept)


@pytest.mark.parametrize('angle', [0.0, 0.3, math.pi / 2, math.pi, -2.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_edges_on_edges(angle, dtype):
    box = torch.tensor([10.0, 20.0, 8.0, 6.0, angle], dtype=dtype)
    beside = box + torch.tensor([8 * math.cos(angle), 8 * math.sin(angle), 0, 0, 0], dtype=dtype)
    turned = torch.tensor([10.0, 20.0, 6.0, 8.0, angle + math.pi / 2], dtype=dtype)
    inside = box * torch.tensor([1, 1, 0.5, 1, 1], dtype=dtype)
    corner = box + torch.tensor([4 * math.cos(angle), 4 * math.sin(angle), 0, 0, 0], dtype=dtype)
    found = ops.box_iou_rotated(box[None], torch.stack((box, beside, turned, inside, corner)))
    tolerance = 1e-6 if dtype == torch.float32 else 1e-14
    torch.testing.assert_close(found[0], torch.tensor([1, 0, 1, 0.5, 1 / 3], dtype=dtype), rtol=0, atol=tolerance)


def test_boxes_without_area_and_no_boxes():
    boxes = torch.tensor([[5.0, 5.0, 0.0, 4.0, 0.1], [5.0, 5.0, 4.0, 4.0, 0.1]])
    assert ops.box_iou_rotated(boxes, boxes)[0].tolist() == [0, 0]
    assert ops.box_iou_rotated(boxes[:0], boxes).shape == (0, 2)
    assert ops.box_iou_rotated(boxes, boxes[:0]).shape == (2, 0)
    assert ops.box_iou_rotated(boxes[:0], boxes[:0], aligned=True).shape == (0,)


def test_nms_as_compiled():
    v = vectors('nms_rotated')
    dets, keep = ops.nms_rotated(v['boxes'], v['scores'], 0.3)
    torch.testing.assert_close(dets, v['dets'], rtol=0, atol=1e-6)
    assert keep.equal(v['keep'])


@pytest.mark.parametrize('labelled', [False, True])
@pytest.mark.parametrize('clockwise', [True, False])
def test_nms_against_loops(labelled, clockwise):
    boxes = random_boxes(80)
    boxes[1] = boxes[0]
    scores = torch.randperm(80, generator=torch.Generator().manual_seed(1)) / 80.0
    labels = torch.arange(80) % 3 if labelled else None
    kept = []
    turned = (boxes * sign_of(1 if clockwise else -1)).tolist()
    for i in scores.argsort(descending=True).tolist():
        if all(overlap(turned[i], turned[j]) < 0.3 for j in kept):
            kept.append(i)
    dets, keep = ops.nms_rotated(boxes, scores.double(), 0.3, labels, clockwise)
    assert keep.tolist() == kept
    assert dets.equal(torch.cat((boxes, scores.double()[:, None]), 1)[keep])


def test_batched_nms_keeps_labels_apart():
    boxes = random_boxes(1).float().repeat(6, 1)
    scores, labels = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), torch.tensor([0, 0, 1, 1, 2, 2])
    config = {'type': 'nms_rotated', 'iou_threshold': 0.5}
    assert ops.batched_nms(boxes, scores, labels, config)[1].tolist() == [5, 3, 1]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    boxes = random_boxes(40).to(dtype)
    scores = (torch.arange(40) / 40).to(dtype)
    found = ops.box_iou_rotated(boxes, boxes)
    assert found.dtype == dtype
    torch.testing.assert_close(found, ops.box_iou_rotated(boxes.float(), boxes.float()).to(dtype))
    assert ops.nms_rotated(boxes, scores, 0.3)[1].equal(ops.nms_rotated(boxes.float(), scores.float(), 0.3)[1])
