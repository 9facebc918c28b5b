"""Deformable RoI pooling through mmcv's own function, against loops."""

import math

import pytest
import torch

import mmext_backbones  # noqa: F401  (finds the operators)

from mmcv import ops  # isort: skip

from tests.test_mmcv_ops.test_pooling import at, boxes, maps

SIZE = (2, 3)


def offsets(num, dtype=torch.float64):
    return 2 * torch.randn(num, 2, *SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def plain(features, rois, offset, scale, ratio, gamma):
    out = torch.zeros(len(rois), features.shape[1], *SIZE, dtype=torch.float64)
    for n, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        w, h = (x2 - x1) * scale, (y2 - y1) * scale
        rows, columns = ratio or math.ceil(h / SIZE[0]), ratio or math.ceil(w / SIZE[1])
        for c in range(features.shape[1]):
            plane = features[int(image), c].tolist()
            for i in range(SIZE[0]):
                for j in range(SIZE[1]):
                    dx, dy = (0, 0) if offset is None else offset[n, :, i, j].tolist()
                    top = y1 * scale - 0.5 + gamma * h * dy + i * h / SIZE[0]
                    left = x1 * scale - 0.5 + gamma * w * dx + j * w / SIZE[1]
                    total = sum(
                        at(plane, top + (a + 0.5) * h / SIZE[0] / rows, left + (b + 0.5) * w / SIZE[1] / columns)
                        for a in range(rows)
                        for b in range(columns)
                    )
                    out[n, c, i, j] = total / max(rows * columns, 1)
    return out


@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('moved', [False, True])
def test_formula(ratio, moved):
    features, rois = maps(), boxes()
    offset = offsets(len(rois)) if moved else None
    out = ops.deform_roi_pool(features, rois, offset, SIZE, 0.125, ratio, 0.1)
    torch.testing.assert_close(out, plain(features, rois, offset, 0.125, ratio, 0.1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('ratio', [0, 2])
def test_gradients(ratio):
    features, rois = maps(channels=2).requires_grad_(), boxes(num=4, size=30.0)
    offset = offsets(len(rois)).requires_grad_()
    function = lambda x, o: ops.deform_roi_pool(x, rois, o, SIZE, 0.125, ratio, 0.1)  # noqa: E731
    assert torch.autograd.gradcheck(function, (features, offset), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_types(dtype):
    features, rois = maps().to(dtype).requires_grad_(), boxes().to(dtype)
    offset = offsets(len(rois), dtype).requires_grad_()
    out = ops.deform_roi_pool(features, rois, offset, SIZE, 0.125, 2, 0.1)
    out.sum().backward()
    exact = plain(features.detach().double(), rois.double(), offset.detach().double(), 0.125, 2, 0.1)
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)
    assert features.grad.dtype == offset.grad.dtype == dtype


def test_no_boxes_and_a_box_without_area():
    features = maps().requires_grad_()
    ops.deform_roi_pool(features, boxes()[:0], None, SIZE, 0.125, 0, 0.1).sum().backward()
    assert not features.grad.any()
    point = torch.tensor([[0.0, 8, 8, 8, 8]], dtype=torch.float64)
    assert not ops.deform_roi_pool(features, point, None, SIZE, 0.125, 0, 0.1).any()


@pytest.mark.parametrize('layer', [ops.DeformRoIPoolPack, ops.ModulatedDeformRoIPoolPack])
def test_the_layers_train(layer):
    torch.manual_seed(0)
    pool = layer(SIZE, 4, deform_fc_channels=8, spatial_scale=0.125)
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    out = pool(maps(channels=4).float(), boxes().float())
    out.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in pool.parameters())
