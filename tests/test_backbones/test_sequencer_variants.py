"""The networks beside Sequencer2D against the authors' outputs, and their parameters."""

import numpy as np
import pytest
import torch
from torch import nn

from mmext_backbones.backbones import Sequencer2D, SequencerVariant, VanillaSequencer
from mmext_backbones.weights import sequencer as weights
from tests.test_backbones.test_contract import check_maps, image, loss
from tests.vectors import cases_of, load, relative_error, tensors, weights_of

CASES = cases_of('sequencer_variants.npz')
NATIVE = {'patch_size': 7, 'pyramid': False}
SMALL = {'embed_dims': (16, 24, 24, 24), 'depths': (1, 1, 2, 1), 'hidden_dims': (4, 6, 6, 6)}
ONE_AXIS = {**SMALL, 'hidden_dims': (8, 12, 12, 12)}
VANILLA = {'embed_dims': (24,) * 4, 'depths': (1, 1, 2, 1), 'patch_sizes': (14, 1, 1, 1)}
# name -> options of SequencerVariant
VARIANTS = {
    'sequencer2d': {'arch': SMALL},
    'unidirectional': {'arch': SMALL, 'bidirectional': False},
    'add': {'arch': SMALL, 'union': 'add'},
    'hidden_2x': {'arch': ONE_AXIS},
    'without_fc': {'arch': SMALL, 'projection': False},
    'vertical': {'arch': ONE_AXIS, 'union': 'vertical', 'projection': False},
    'horizontal': {'arch': ONE_AXIS, 'union': 'horizontal', 'projection': False},
    'gru': {'arch': SMALL, 'cell': 'gru'},
    'rnn': {'arch': SMALL, 'cell': 'rnn'},
}
VANILLAS = {
    'vanilla': {'arch': VANILLA},
    'vanilla_hierarchical': {'arch': {**VANILLA, 'embed_dims': (16, 24, 24, 24), 'patch_sizes': (7, 2, 1, 1)}},
    'vanilla_position': {'arch': VANILLA, 'absolute_position': True},
}


def build(name, **options):
    torch.manual_seed(0)
    if name in VARIANTS:
        return SequencerVariant(**VARIANTS[name], **options)
    return VanillaSequencer(**VANILLAS[name], **options)


@pytest.mark.parametrize('name', CASES)
def test_agrees_with_the_authors(name):
    case = CASES[name]
    model = build(name, **(NATIVE if name in VARIANTS else {}))
    theirs = weights_of(case)
    positions = theirs.pop('absolute_pos_embed', None)
    ours = weights.from_authors(theirs)
    norm = {key.removeprefix('norm2.'): ours.pop(key) for key in list(ours) if key.startswith('norm2.')}
    if positions is not None:
        model.patch_embed.absolute_pos_embed = nn.Parameter(positions)
        ours['patch_embed.absolute_pos_embed'] = positions
    load(model, ours)
    x = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, 56, 56), dtype=np.float32)).requires_grad_()
    maps = model(x)
    expected = tensors(case, 'stage0', 'stage1', 'stage2', 'stage3', 'features', 'grad_x')
    for out, wanted in zip(maps, expected, strict=False):
        assert relative_error(out.detach(), wanted) <= 2e-5
    normed = nn.functional.layer_norm(maps[3].permute(0, 2, 3, 1), (24,), norm['weight'], norm['bias'], 1e-6)
    features = normed.mean((1, 2))
    assert relative_error(features.detach(), expected[4]) <= 2e-5
    features.sum().backward()
    assert relative_error(x.grad[..., ::4, ::4], expected[5]) <= 2e-5  # tests/data has every fourth pixel


def count(model):
    """With the last norm and 1000 classes, as the source counts."""
    C = model.out_channels[-1]
    return sum(p.numel() for p in model.parameters()) + 2 * C + (C + 1) * 1000


ARCH = Sequencer2D.ARCHS['small']
WIDE = {**ARCH, 'hidden_dims': (96, 192, 192, 192)}
LARGE = {**Sequencer2D.ARCHS['large'], 'embed_dims': (256, 512, 512, 512), 'hidden_dims': (64, 128, 128, 128)}


@pytest.mark.parametrize(
    ('expected', 'options'),
    [
        (27_651_688, {}),
        (20_991_592, {'bidirectional': False}),
        (26_545_768, {'union': 'add'}),
        (45_395_560, {'arch': WIDE}),
        (25_433_704, {'projection': False}),
        (27_645_544, {'arch': WIDE, 'union': 'vertical', 'projection': False}),
        (27_645_544, {'arch': WIDE, 'union': 'horizontal', 'projection': False}),
        (24_874_600, {'cell': 'gru'}),
        (19_320_424, {'cell': 'rnn'}),
        (96_252_392, {'arch': LARGE}),
    ],
)
def test_parameters_of_the_variants(expected, options):
    with torch.device('meta'):
        assert count(SequencerVariant(**NATIVE, **options)) == expected


@pytest.mark.parametrize(
    ('expected', 'options'),
    [
        (33_016_552, {}),
        (27_645_544, {'arch': 'small_hierarchical'}),
        (33_114_856, {'absolute_position': True}),
    ],
)
def test_parameters_of_the_vanilla_networks(expected, options):
    with torch.device('meta'):
        assert count(VanillaSequencer(**options)) == expected


@pytest.mark.parametrize('name', [*VARIANTS, *VANILLAS])
def test_any_size_and_a_gradient_for_every_parameter(name):
    model = build(name, drop_path_rate=0.0).eval()
    for size in [(1, 1), (33, 50), (64, 96)]:
        check_maps(model, *size)
    loss(model.train()(image(40, 72, batch=2))).backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize('name', ['gru', 'horizontal', 'vanilla_position'])
def test_its_own_checkpoint_is_loaded_whole(name, tmp_path):
    model, other = build(name), build(name)
    for p in model.parameters():
        p.data.normal_()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    assert other.load_pretrained(str(tmp_path / 'weights.pth')).complete
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ('cls', 'options', 'message'),
    [
        (SequencerVariant, {'cell': 'qrnn'}, "cell='qrnn'"),
        (SequencerVariant, {'union': 'vertical', 'projection': False}, r'projection=False: .* 192 channels'),
        (SequencerVariant, {'bidirectional': 'no'}, "bidirectional='no': expected True or False"),
        (SequencerVariant, {'projection': None}, 'projection=None: expected True or False'),
        (VanillaSequencer, {'arch': {**VANILLA, 'embed_dims': (15,) * 4}}, r'embed_dims=\(15, .*: expected even'),
        (VanillaSequencer, {'arch': {**VANILLA, 'patch_sizes': (14, 1)}}, r'patch_sizes=\(14, 1\): expected 4 numbers'),
        (VanillaSequencer, {'absolute_position': 2}, 'absolute_position=2: expected True or False'),
    ],
)
def test_bad_arguments_are_named(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(**options)
