"""mmcv's SyncBatchNorm, in one process and in two that are played by hand, against torch's batch norm."""

import pytest
import torch
from mmcv.utils import ext_loader
from torch import nn

import mmext_backbones  # noqa: F401  (finds the operators)

from mmcv.ops.sync_bn import SyncBatchNormFunction  # isort: skip

ext = ext_loader.load_ext('_ext', ['sync_bn_forward_mean'])


def reference(channels):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels, momentum=0.3)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


@pytest.mark.parametrize('mode', ['default', 'N'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_one_process(mode, dtype):
    norm = reference(3)
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    weight, bias = (p.detach().clone().requires_grad_() for p in (norm.weight, norm.bias))
    x = torch.randn(2, 3, 5, 7).to(dtype).requires_grad_()
    grad = torch.randn(2, 3, 5, 7).to(dtype)
    out = SyncBatchNormFunction.apply(x, mean, var, weight, bias, 0.3, norm.eps, None, 1, mode)
    out.backward(grad)
    other = x.detach().float().requires_grad_()
    expected = norm(other)
    expected.backward(grad.float())
    tolerance = {'rtol': 1e-5, 'atol': 1e-5} if dtype == torch.float32 else {'rtol': 2e-3, 'atol': 2e-3}
    for mine, theirs in ((out, expected), (x.grad, other.grad), (weight.grad, norm.weight.grad)):
        torch.testing.assert_close(mine.float(), theirs, **tolerance)
    torch.testing.assert_close(bias.grad, norm.bias.grad, **tolerance)
    torch.testing.assert_close(mean, norm.running_mean)
    torch.testing.assert_close(var, norm.running_var)


def test_two_processes():
    """The parts, with the sums between them that all processes would do."""
    norm = reference(3)
    x = torch.randn(4, 3, 35, requires_grad=True)
    grad = torch.randn(4, 3, 35)
    halves = x.detach().split(2)
    means = [torch.zeros(3) for _ in halves]
    for half, mean in zip(halves, means, strict=True):
        ext.sync_bn_forward_mean(half, mean)
    mean = sum(means) / 2
    variances = [torch.zeros(3) for _ in halves]
    for half, var in zip(halves, variances, strict=True):
        ext.sync_bn_forward_var(half, mean, var)
    var = sum(variances) / 2
    outs, kept = [], []
    for half in halves:
        running = norm.running_mean.clone(), norm.running_var.clone()
        normed, std, out = torch.zeros_like(half), torch.zeros(3), torch.zeros_like(half)
        ext.sync_bn_forward_output(
            half, mean, var, norm.weight, norm.bias, *running, normed, std, out,
            eps=norm.eps, momentum=torch.tensor([0.3]), group_size=2,
        )  # fmt: skip
        outs.append(out)
        kept.append((normed, std, running))
    sums = [torch.zeros(2, 3) for _ in halves]
    for (normed, _, _), part, total in zip(kept, grad.split(2), sums, strict=True):
        ext.sync_bn_backward_param(part, normed, *total)
    mean_of_sums = sum(sums) / 2
    grads = []
    for (normed, std, _), part in zip(kept, grad.split(2), strict=True):
        of_input = torch.zeros_like(part)
        ext.sync_bn_backward_data(part, norm.weight, *mean_of_sums, normed, std, of_input)
        grads.append(of_input)
    expected = norm(x[..., None])[..., 0]
    expected.backward(grad)
    torch.testing.assert_close(torch.cat(outs), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.cat(grads), x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(sums)[0], norm.weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sum(sums)[1], norm.bias.grad, rtol=1e-5, atol=1e-5)
    for _, _, running in kept:
        torch.testing.assert_close(running, (norm.running_mean, norm.running_var))
