"""mmcv's operators where there is nothing, or nothing of its own, to compute from."""

import pytest
import torch

import mmext_backbones  # noqa: F401  mmcv.ops finds its operators

ops = pytest.importorskip('mmcv.ops')


@pytest.mark.parametrize(('B', 'num_queries'), [(2, 0), (0, 5)])
def test_attention_of_no_queries_or_images(B, num_queries):
    shapes, starts = torch.tensor([[6, 7], [3, 4]]), torch.tensor([0, 42])
    value = torch.randn(B, 54, 3, 8, requires_grad=True)
    locations = torch.rand(B, num_queries, 3, 2, 4, 2, requires_grad=True)
    weights = torch.rand(B, num_queries, 3, 2, 4, requires_grad=True)
    attention = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
    output = attention(value, shapes, starts, locations, weights, 64)
    assert output.shape == (B, num_queries, 24)
    output.sum().backward()
    assert torch.equal(value.grad, torch.zeros_like(value))
    assert locations.grad.shape == locations.shape


def test_softmax_focal_loss_has_none_for_background():
    logits = torch.randn(3, 4, requires_grad=True)
    class_weights = torch.tensor([2.0, 3.0, 4.0, 5.0])
    loss = ops.softmax_focal_loss(logits, torch.tensor([1, -1, 4]), 2.0, 0.25, class_weights, 'sum')
    loss.backward()
    p = logits.detach()[0].softmax(0)[1]
    torch.testing.assert_close(loss.detach(), -3.0 * 0.25 * (1 - p) ** 2 * p.log())
    assert logits.grad[0].abs().min() > 0
    assert torch.equal(logits.grad[1:], torch.zeros(2, 4))


def test_sigmoid_focal_loss_of_large_logits():
    """log(p) from the logit: 1 - p is 0 in float32 beyond 17, and the loss is still the logit there."""
    logits = torch.tensor([[20.0, 120.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([2]), 2.0, 0.25, None, 'none')
    torch.testing.assert_close(loss.detach(), 0.75 * logits.detach())
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_deformable_convolution_twice_through_one_graph():
    """The weight's gradient waits in a scratch tensor between two calls; a second pass must not read the first's."""
    x, offset, weight = (
        torch.randn(shape, requires_grad=True) for shape in ((2, 4, 6, 7), (2, 18, 6, 7), (4, 4, 3, 3))
    )
    output = ops.deform_conv2d(x, offset, weight, 1, 1)
    once = torch.autograd.grad(output, weight, torch.ones_like(output), retain_graph=True)[0]
    twice = torch.autograd.grad(output, (x, weight), 2 * torch.ones_like(output))[1]
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize('pack', ['DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'])
def test_deformable_pooling_of_no_boxes(pack):
    x = torch.randn(1, 3, 8, 12, requires_grad=True)
    output = ops.deform_roi_pool(x, torch.zeros(0, 5), torch.zeros(0, 2, 3, 2), (3, 2), 0.25, 0, 0.1)
    output.sum().backward()
    assert output.shape == (0, 3, 3, 2)
    assert torch.equal(x.grad, torch.zeros_like(x))
    pooled = getattr(ops, pack)((3, 2), 3, 8, 0.25)(x, torch.tensor([[0, 0.0, 0, 40, 30]]))
    assert pooled.shape == (1, 3, 3, 2)
    assert pooled.isfinite().all()
