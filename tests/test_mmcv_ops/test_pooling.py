"""RoIAlign and RoIPool through mmcv's own functions, against mmcv as compiled and against plain loops."""

import math

import pytest
import torch
from mmcv import ops

from tests.test_mmcv_ops.vectors import vectors

HALVES = [torch.float16, torch.bfloat16]


def maps(channels=3, H=9, W=11, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, H, W, generator=rng, dtype=torch.float64)


def boxes(num=12, size=80.0, seed=0):
    """Boxes of a map of 9 x 11 at stride 8, some beyond its edges."""
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(num, 2, generator=rng, dtype=torch.float64) * size - 10
    rois = torch.cat((corner, corner + torch.rand(num, 2, generator=rng, dtype=torch.float64) * size), 1)
    return torch.cat((torch.arange(num)[:, None] % 2, rois), 1)


def at(plane, y, x):
    """A map [H][W] at a point, bilinear, as RoIAlign reads it; 0 beyond a pixel outside."""
    H, W = len(plane), len(plane[0])
    if not (-1 <= y <= H and -1 <= x <= W):
        return 0.0
    y, x = min(max(y, 0), H - 1), min(max(x, 0), W - 1)
    i, j = int(y), int(x)
    k, m = min(i + 1, H - 1), min(j + 1, W - 1)
    top = plane[i][j] * (1 - x + j) + plane[i][m] * (x - j)
    return top * (1 - y + i) + (plane[k][j] * (1 - x + j) + plane[k][m] * (x - j)) * (y - i)


def plain_roi_align(features, rois, size, scale, ratio, mode, aligned, clockwise=None):
    """Loops over every point; boxes of six numbers are rotated ones."""
    out = torch.zeros(len(rois), features.shape[1], *size, dtype=torch.float64)
    for n, (image, *box) in enumerate(rois.tolist()):
        shift = 0.5 if aligned else 0.0
        if len(box) == 5:
            cx, cy, w, h = (v * scale for v in box[:4])
            angle = -box[4] if clockwise else box[4]
            cx, cy, x1, y1 = cx - shift, cy - shift, None, None
        else:
            x1, y1, x2, y2 = (v * scale - shift for v in box)
            w, h = x2 - x1, y2 - y1
        w, h = (w, h) if aligned else (max(w, 1), max(h, 1))
        if x1 is None:
            x1, y1 = -w / 2, -h / 2
        bin_h, bin_w = h / size[0], w / size[1]
        rows, columns = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        for c, plane in enumerate(features[int(image)].tolist()):
            for i in range(size[0]):
                for j in range(size[1]):
                    values = []
                    for a in range(rows):
                        for b in range(columns):
                            y, x = y1 + (i + (a + 0.5) / rows) * bin_h, x1 + (j + (b + 0.5) / columns) * bin_w
                            if len(box) == 5:
                                cos, sin = math.cos(angle), math.sin(angle)
                                y, x = y * cos - x * sin + cy, y * sin + x * cos + cx
                            values.append(at(plane, y, x))
                    out[n, c, i, j] = max(values) if mode == 'max' else sum(values) / max(len(values), 1)
    return out


def plain_roi_pool(features, rois, size, scale):
    """mmcv's edges: the floor of a bin's start to the ceiling of its end, of a box whose last pixel is x2."""
    H, W = features.shape[2:]
    out = torch.zeros(len(rois), features.shape[1], *size, dtype=torch.float64)
    for n, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        if x2 <= x1 or y2 <= y1:
            continue
        for i in range(size[0]):
            top = math.floor(y1 + i * (y2 - y1) / size[0])
            bottom = math.ceil(y1 + (i + 1) * (y2 - y1) / size[0])
            for j in range(size[1]):
                left = math.floor(x1 + j * (x2 - x1) / size[1])
                right = math.ceil(x1 + (j + 1) * (x2 - x1) / size[1])
                part = features[
                    int(image), :, max(top, 0) : min(max(bottom, 0), H), max(left, 0) : min(max(right, 0), W)
                ]
                if part.numel():
                    out[n, :, i, j] = part.amax((1, 2))
    return out


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('aligned', [0, 1])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_as_compiled(mode, aligned, ratio):
    v = vectors(f'roi_align_{mode}_aligned{aligned}_ratio{ratio}')
    features = v['features'].requires_grad_()
    out = ops.RoIAlign((7, 5), 1 / 8, ratio, mode, bool(aligned))(features, v['rois'])
    torch.testing.assert_close(out, v['output'], rtol=0, atol=1e-6)
    out.backward(v['grad_output'])
    torch.testing.assert_close(features.grad, v['grad_features'], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('ratio', [0, 3])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_against_loops(mode, aligned, ratio):
    found = ops.roi_align(maps(), boxes(), (3, 2), 1 / 8, ratio, mode, aligned)
    expected = plain_roi_align(maps(), boxes(), (3, 2), 1 / 8, ratio, mode, aligned)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('clockwise', [False, True])
@pytest.mark.parametrize('ratio', [0, 2])
def test_rotated_roi_align_against_loops(aligned, clockwise, ratio):
    corners = boxes()
    angles = torch.linspace(-3.0, 3.0, len(corners), dtype=torch.float64)[:, None]
    rois = torch.cat((corners[:, :3], corners[:, 3:] - corners[:, 1:3], angles), 1)
    found = ops.roi_align_rotated(maps(), rois, (3, 2), 1 / 8, ratio, aligned, clockwise)
    expected = plain_roi_align(maps(), rois, (3, 2), 1 / 8, ratio, 'avg', aligned, clockwise)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    single = ops.RoIAlignRotated((3, 2), 1 / 8, ratio, aligned, clockwise)(maps().float(), rois.float())
    torch.testing.assert_close(single.double(), found, rtol=0, atol=1e-5)


def test_roi_pool_against_loops():
    rois = boxes(20)
    rois[3, 3:] = rois[3, 1:3] - 2  # turned inside out
    rois[4] = torch.tensor([0.0, 8.0, 16.0, 31.0, 39.0])  # bins end at pixels: none of their neighbours
    rois[5] = torch.tensor([1.0, 200.0, 200.0, 240.0, 240.0])  # outside
    found = ops.RoIPool((3, 2), 1 / 8)(maps(), rois)
    torch.testing.assert_close(found, plain_roi_pool(maps(), rois, (3, 2), 1 / 8), rtol=0, atol=0)
    assert not found[[3, 5]].any()
    assert ops.roi_pool(maps().float(), rois.float(), (3, 2), 1 / 8).equal(found.float())


POOLS = {
    'avg': lambda x, rois: ops.roi_align(x, rois, (3, 2), 1 / 8, 2, 'avg'),
    'max': lambda x, rois: ops.roi_align(x, rois, (3, 2), 1 / 8, 2, 'max'),
    'rotated': lambda x, rois: ops.roi_align_rotated(x, rois, (3, 2), 1 / 8, 2),
    'pool': lambda x, rois: ops.roi_pool(x, rois, (3, 2), 1 / 8),
}


def boxes_for(name, *args):
    rois = boxes(*args)
    if name != 'rotated':
        return rois
    return torch.cat((rois[:, :3], rois[:, 3:] - rois[:, 1:3], rois[:, 2:3] / 50), 1)


@pytest.mark.parametrize('name', POOLS)
def test_gradients(name):
    features = maps(2, 5, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: POOLS[name](x, boxes_for(name, 5, 40.0)), features)


@pytest.mark.parametrize('name', ['max', 'rotated', 'pool'])
def test_more_boxes_than_are_computed_at_once(name, monkeypatch):
    from mmext_backbones.mmcv_ops import pooling, sampling

    whole = POOLS[name](maps(), boxes_for(name, 20))
    for module in (pooling, sampling):
        monkeypatch.setattr(module, 'ELEMENTS', 40)
    assert POOLS[name](maps(), boxes_for(name, 20)).equal(whole)


@pytest.mark.parametrize('name', POOLS)
@pytest.mark.parametrize('dtype', HALVES)
def test_half_types(name, dtype):
    """Inputs of few bits give what these inputs give in float32, rounded once; gradients too."""
    features, rois = maps().to(dtype), boxes_for(name).to(dtype)
    half, single = features.clone().requires_grad_(), features.float().requires_grad_()
    out, expected = POOLS[name](half, rois), POOLS[name](single, rois.float())
    assert out.dtype == dtype
    assert out.equal(expected.to(dtype))
    out.backward(torch.ones_like(out))
    expected.backward(torch.ones_like(expected))
    assert half.grad.dtype == dtype
    if name != 'max':  # whose places are kept in the type of the maps, as mmcv allocates them
        torch.testing.assert_close(half.grad, single.grad.to(dtype))


@pytest.mark.parametrize('name', POOLS)
def test_no_boxes(name):
    features = maps().requires_grad_()
    out = POOLS[name](features, boxes_for(name)[:0])
    assert out.shape == (0, 3, 3, 2)
    out.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize('name', POOLS)
def test_maps_in_another_memory_format(name):
    features = maps().to(memory_format=torch.channels_last)
    assert POOLS[name](features, boxes_for(name)).equal(POOLS[name](maps(), boxes_for(name)))


@pytest.mark.parametrize('dtype', HALVES)
def test_under_autocast(dtype):
    features, rois = maps().float(), boxes().float()
    with torch.autocast('cpu', dtype):
        out = ops.RoIAlign((3, 2), 1 / 8)(features.to(dtype), rois.to(dtype))
        assert out.dtype == dtype
        assert ops.RoIAlign((3, 2), 1 / 8)(features, rois).dtype == torch.float32
