"""Adaptive average pooling as two products, against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmext_backbones.export.whole.pooling import adaptive_average_pool, pool_at_any_size

EDGES = [*range(1, 20), 25, 33, 42, 64, 101]


@pytest.mark.parametrize('areas', [1, 2, 3, 6, 7])
def test_it_is_pytorch_s_at_every_size(areas):
    for n, H in enumerate(EDGES):
        W = EDGES[-1 - n]
        x = torch.randn(2, 3, H, W, dtype=torch.float64)
        expected = F.adaptive_avg_pool2d(x, areas)
        torch.testing.assert_close(adaptive_average_pool(x, areas), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize('size', [(2, 5), (None, 3), (3, None), (1, 1)])
def test_axes_of_their_own(size):
    x = torch.randn(1, 2, 7, 19)
    # float32 summed in another order
    torch.testing.assert_close(adaptive_average_pool(x, size), F.adaptive_avg_pool2d(x, size), rtol=0, atol=1e-6)


def test_every_pool_of_a_network_is_replaced():
    network = nn.ModuleDict({'a': nn.Sequential(nn.AdaptiveAvgPool2d((3, 2)), nn.ReLU()), 'b': nn.AdaptiveAvgPool2d(1)})
    x = torch.randn(2, 4, 11, 5)
    expected = [network[name](x) for name in 'ab']
    assert pool_at_any_size(network) is network
    assert not any(isinstance(module, nn.AdaptiveAvgPool2d) for module in network.modules())
    torch.testing.assert_close([network[name](x) for name in 'ab'], expected)
