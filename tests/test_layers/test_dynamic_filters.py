"""Involution, decoupled dynamic filters and depthwise mixers against their authors' outputs."""

import json

import pytest
import torch

from mmext_backbones.layers import DecoupledDynamicFilter, DepthwiseMixer, DynamicDepthwiseConv, Involution
from mmext_backbones.layers.batch_norm import BatchNorm2d
from mmext_backbones.ops import filter_norm
from tests.vectors import cases_of, load, relative_error, tensors, weights_of

INVOLUTION = cases_of('involution.npz')
DDF = {name: case for name, case in cases_of('ddf.npz').items() if not name.startswith('norm')}
DWCONV = cases_of('dwconv_block.npz')


def renamed(weights, table):
    """By ours: the part of a key that the table has."""
    names = {
        key: next((new + key[len(old) :] for old, new in table.items() if key.startswith(old)), key) for key in weights
    }
    return {names[key]: value for key, value in weights.items()}


def check(case, forward, *, last=False):
    """Output and gradient of the image, [B, C, H, W], or with `last` [B, H, W, C]."""
    x, out, grad_out, grad_x = tensors(case, 'x', 'out', 'grad_out', 'grad_x')
    x.requires_grad_()
    actual = forward(x) if last else forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    actual.backward(grad_out)
    assert relative_error(actual.detach(), out) <= 2e-6
    assert relative_error(x.grad, grad_x) <= 2e-6


@pytest.mark.parametrize('name', INVOLUTION)
def test_involution(name):
    case = INVOLUTION[name]
    C, kernel_size, stride = (int(n) for n in case['args'])
    table = {'conv1.conv.': 'reduce.', 'conv1.bn.': 'norm.', 'conv2.conv.': 'expand.'}
    module = load(Involution(C, kernel_size, stride), renamed(weights_of(case), table))
    check(case, module)
    x, expected = tensors(case, 'x', 'out_batch_statistics')
    with torch.no_grad():
        out = module.train()(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert relative_error(out, expected) <= 2e-6


@pytest.mark.parametrize('name', DDF)
def test_decoupled_dynamic_filter(name):
    case = DDF[name]
    args = json.loads(str(case['args']))
    gain = {'relu': 2**0.5, 'linear': 1.0}[args['nonlinearity']]
    module = DecoupledDynamicFilter(
        args['in_channels'],
        args['head'],
        args['kernel_size'],
        combine=args['kernel_combine'],
        gain=gain,
        dilation=args['dilation'],
    )
    table = {
        'spatial_branch.0.': 'spatial.',
        'channel_branch.1.': 'channel1.',
        'channel_branch.3.': 'channel2.',
        'channel_branch.4.std': 'channel_scale',
    }
    load(module, renamed(weights_of(case), table))
    x, spatial, channel = tensors(case, 'x', 'spatial_filter', 'channel_filter')
    with torch.no_grad():
        assert relative_error(module.spatial_filter(x), spatial) <= 2e-6
        assert relative_error(module.channel_filter(x).flatten(1), channel) <= 2e-6
    check(case, module)


def test_a_channel_branch_of_ones_leaves_a_normalised_involution():
    """By hand, with 'mul'; with 'add' and zeros."""
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    outs = []
    for combine, constant in (('mul', 1.0), ('add', 0.0)):
        torch.manual_seed(1)
        module = DecoupledDynamicFilter(8, 2, 3, combine=combine).double()
        module.channel_filter = lambda x, constant=constant: x.new_full((len(x), 8, 9), constant)
        outs.append(module(x))
    filters = filter_norm(module.spatial(x.permute(0, 3, 1, 2)).unflatten(1, (2, 9)), 2)  # [B, 2, 9, H, W]
    padded = torch.nn.functional.pad(x, (0, 0, 1, 1, 1, 1))
    expected = torch.zeros_like(x)
    for o in range(9):
        y, c = divmod(o, 3)
        expected += filters[:, :, o].repeat_interleave(4, 1).permute(0, 2, 3, 1) * padded[:, y : y + 5, c : c + 6]
    for out in outs:
        torch.testing.assert_close(out, expected)


def test_depthwise_mixer():
    case = DWCONV['block']
    C, window = (int(n) for n in case['args'])
    table = {
        'conv0.': 'conv1.',
        'bn0.': 'norm1.',
        'conv.': 'conv2.',
        'bn.': 'norm2.',
        'conv2.': 'conv3.',
        'bn2.': 'norm3.',
    }
    check(case, load(DepthwiseMixer(C, window), renamed(weights_of(case), table)), last=True)


def test_dynamic_depthwise_convolution():
    case = DWCONV['dynamic']
    C, window = (int(n) for n in case['args'])
    table = {'conv1.': 'reduce.', 'bn.': 'norm.', 'conv2.': 'expand.'}
    check(case, load(DynamicDepthwiseConv(C, window), renamed(weights_of(case), table)), last=True)


@pytest.mark.parametrize(
    'build',
    [
        lambda: Involution(16, 3),
        lambda: DecoupledDynamicFilter(16, kernel_size=3),
        lambda: DecoupledDynamicFilter(16, kernel_size=3, combine='add'),
        lambda: DepthwiseMixer(16, 3),
        lambda: DepthwiseMixer(16, 3, dynamic=True),
    ],
)
@pytest.mark.parametrize('shape', [(1, 1, 1), (0, 4, 5), (1, 2, 1)])
def test_single_pixels_and_empty_batches_train(build, shape):
    module = build().train()
    x = torch.randn(*shape, 16, requires_grad=True)
    out = module(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_a_batch_norm_of_one_value_keeps_its_statistics():
    norm = BatchNorm2d(3).train()
    norm(torch.randn(1, 3, 1, 1))
    assert not norm.num_batches_tracked
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(norm(x), torch.nn.functional.batch_norm(x, None, None, training=True))
    assert norm.num_batches_tracked == 1


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match='embed_dims=24: expected a multiple of 16'):
        Involution(24)
    with pytest.raises(ValueError, match="combine='max': expected one of mul, add"):
        DecoupledDynamicFilter(8, combine='max')
    with pytest.raises(ValueError, match='a map of 5 x 4: expected multiples of stride=2'):
        Involution(16, 3, 2)(torch.zeros(1, 5, 4, 16))
