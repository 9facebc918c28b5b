"""Sequencer2D against timm, and what the dense form adds."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.backbones import Sequencer2D
from mmext_backbones.layers import BiLSTM2D
from mmext_backbones.weights import sequencer as weights
from mmext_backbones.weights.resize import resize_patch_kernel
from tests.conftest import randomize

# of the published backbone, and of the classifier
PARAMETERS = {
    'small': (27_265_920, 27_651_688),
    'medium': (37_921_920, 38_307_688),
    'large': (53_912_448, 54_298_216),
}
SMALL = {'embed_dims': (16, 32, 32, 32), 'depths': (1, 2, 1, 1), 'hidden_dims': (4, 8, 8, 8)}


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameter_count(arch):
    with torch.device('meta'):
        model = Sequencer2D(arch, patch_size=7, pyramid=False)
    parameters = sum(p.numel() for p in model.parameters())
    C = model.out_channels[-1]
    assert (parameters, parameters + 2 * C + (C + 1) * 1000) == PARAMETERS[arch]  # norm, classes


def timm_model(arch):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    return randomize(timm.create_model(f'sequencer2d_{arch[0]}')).eval()


def timm_weights(state_dict):
    """For the native form, which has no norms."""
    return {key: value for key, value in weights.from_timm(state_dict).items() if not key.startswith('norm2.')}


def timm_maps(peer, x):
    """The map of every stage, [B, C, H, W]."""
    maps = []
    x = peer.stem(x)
    for stage in peer.stages:
        x = stage(x)
        maps.append(x.permute(0, 3, 1, 2))
    return maps


@pytest.mark.parametrize(
    ('arch', 'size'),
    [
        *(pytest.param(arch, (224, 224), marks=pytest.mark.slow) for arch in ('small', 'medium', 'large')),
        ('small', (217, 301)),
        ('small', (64, 14)),
    ],
)
def test_native_agrees_with_timm(arch, size):
    peer = timm_model(arch)
    ours = Sequencer2D(arch, patch_size=7, pyramid=False).eval()
    ours.load_state_dict(timm_weights(peer.state_dict()))
    x = torch.randn(1, 3, *size)
    # the rule for sizes that 14 does not divide: ours pads the image and crops the maps, timm drops the remainder
    padded = F.pad(x, (0, -size[1] % 14, 0, -size[0] % 14))
    with torch.no_grad():
        for out, expected, stride in zip(ours(x), timm_maps(peer, padded), ours.out_strides, strict=True):
            assert tuple(out.shape[2:]) == tuple(math.ceil(n / stride) for n in size)
            expected = expected[..., : out.shape[2], : out.shape[3]]
            assert (out - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_native_agrees_with_timm_in_gradients():
    peer = timm_model('small')
    ours = Sequencer2D('small', patch_size=7, pyramid=False).eval()
    ours.load_state_dict(timm_weights(peer.state_dict()))
    x = torch.randn(2, 3, 70, 98)
    x_peer, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    outs_peer, outs_ours = timm_maps(peer, x_peer), ours(x_ours)
    weight = [torch.randn_like(out) for out in outs_peer]
    for outs in (outs_peer, outs_ours):
        sum((out * w).sum() for out, w in zip(outs, weight, strict=True)).backward()
    grads = {key: p.grad for key, p in peer.named_parameters() if p.grad is not None}
    expected = timm_weights(grads) | {'input': x_peer.grad}
    actual = {key: p.grad for key, p in ours.named_parameters()} | {'input': x_ours.grad}
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert (actual[name] - grad).abs().max() <= 2e-4 * grad.abs().max(), name


def test_classifier_agrees_with_timm():
    # with the last norm: what a pretrained classifier would tell about a picture
    peer = timm_model('small')
    ours = Sequencer2D('small').eval()
    missing, unexpected = ours.load_state_dict(peer.state_dict(), strict=False)  # the stem is resampled on the way
    assert not unexpected
    assert {key.split('.')[0] for key in missing} == {'upsample', 'norm0', 'norm1', 'norm3'}
    patches = torch.randn(1, 3, 56, 70)
    enlarged = enlarge_patches(patches, 7, 8)
    with torch.no_grad():
        expected = peer.forward_features(patches).permute(0, 3, 1, 2)
        out = ours(enlarged)[2]
    assert (out - expected).abs().max() <= 1e-4 * expected.abs().max()


def enlarge_patches(x, old, new):
    """Every patch of `old` pixels enlarged to `new`, on its own."""
    B, C, H, W = x.shape
    patches = x.view(B, C, H // old, old, W // old, old).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    patches = F.interpolate(patches, (new, new), mode='bilinear')
    patches = patches.view(B, H // old, W // old, C, new, new).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(B, C, H // old * new, W // old * new)


@pytest.mark.parametrize('new', [8, 14])
def test_resampled_stem_answers_to_enlarged_patches_as_the_original(new):
    torch.manual_seed(0)
    kernel = torch.randn(6, 3, 7, 7, dtype=torch.float64)
    x = torch.randn(2, 3, 21, 35, dtype=torch.float64)
    expected = F.conv2d(x, kernel, stride=7)
    actual = F.conv2d(enlarge_patches(x, 7, new), resize_patch_kernel(kernel, new), stride=new)
    torch.testing.assert_close(actual, expected)


def test_same_patch_size_leaves_the_kernel_alone():
    kernel = torch.randn(6, 3, 7, 7)
    assert resize_patch_kernel(kernel, 7) is kernel
    assert resize_patch_kernel(kernel.half(), 4).dtype == torch.float16


def lstm_by_hand(rnn, sequences, reverse):
    """One direction on [N, T, C], gate by gate, [N, T, D]."""
    suffix = '_l0_reverse' if reverse else '_l0'
    w_ih, w_hh, b_ih, b_hh = (getattr(rnn, k + suffix) for k in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh'))
    h = c = torch.zeros(len(sequences), rnn.hidden_size, dtype=sequences.dtype)
    steps = range(sequences.shape[1])
    outs = {}
    for t in reversed(steps) if reverse else steps:
        i, f, g, o = (sequences[:, t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outs[t] = h
    return torch.stack([outs[t] for t in steps], dim=1)


def test_bilstm2d_is_its_definition():
    torch.manual_seed(0)
    mixer = BiLSTM2D(12, 4).double()
    x = torch.randn(2, 5, 7, 12, dtype=torch.float64)
    out = torch.zeros(2, 5, 7, 16, dtype=torch.float64)
    for reverse in (False, True):
        for w in range(7):
            out[:, :, w, 4 * reverse : 4 * reverse + 4] = lstm_by_hand(mixer.rnn_v, x[:, :, w], reverse)
        for h in range(5):
            out[:, h, :, 8 + 4 * reverse : 12 + 4 * reverse] = lstm_by_hand(mixer.rnn_h, x[:, h], reverse)
    torch.testing.assert_close(mixer(x), mixer.proj(out))


def test_pyramid_is_the_stages_resampled():
    torch.manual_seed(0)
    model = Sequencer2D(SMALL).eval()
    native = Sequencer2D(SMALL, patch_size=8, pyramid=False).eval()
    assert not native.load_state_dict(model.state_dict(), strict=False).missing_keys
    x = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        outs, maps = model(x), native(x)
        expected = [
            F.interpolate(maps[0], scale_factor=2)[..., :12, :18],  # a fresh transposed convolution repeats
            maps[0],
            maps[-1],
            F.avg_pool2d(maps[-1], 2, ceil_mode=True, count_include_pad=False),
        ]
        for i, (out, level) in enumerate(zip(outs, expected, strict=True)):
            normed = getattr(model, f'norm{i}')(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(out, normed)


def test_levels_of_the_first_stage_build_no_other():
    assert len(Sequencer2D(SMALL, out_indices=(0, 1)).stages) == 1
    assert len(Sequencer2D(SMALL, out_indices=(2,)).stages) == 4
    assert len(Sequencer2D(SMALL, pyramid=False, out_indices=(2,)).stages) == 3


def test_native_strides():
    model = Sequencer2D(SMALL, patch_size=7, pyramid=False)
    assert model.out_strides == (7, 14, 14, 14)
    assert model.out_channels == (16, 32, 32, 32)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'patch_size': 7}, 'patch_size=7: expected an even number for the pyramid, or pyramid=False'),
        ({'patch_size': 0, 'pyramid': False}, 'patch_size=0'),
        (
            {'arch': {**SMALL, 'hidden_dims': (4, 8)}},
            r'hidden_dims=\(4, 8\): expected 4 numbers, one a stage as in depths',
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Sequencer2D(**({'arch': SMALL} | options))
