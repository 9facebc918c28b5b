"""SwinTransformer against the authors' outputs, mmdet's module, and the published parameter counts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmext_backbones.backbones import SwinTransformer
from mmext_backbones.weights import swin as weights
from tests.conftest import seeded_tensor

DATA = Path(__file__).parents[1] / 'data'
PARAMETERS = {'tiny': 27_520_698, 'small': 48_838_602, 'base': 86_745_016}


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameter_count(arch):
    with torch.device('meta'):
        model = SwinTransformer(arch)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[arch]


def check_vectors(model, convert, file):
    """Load the seeded weights under the authors' names, convert, and compare the four maps; 2e-5 relative."""
    vectors = np.load(DATA / file)
    authors = {key: seeded_tensor(key, tuple(shape)) for key, shape in json.loads(str(vectors['keys'])).items()}
    model.load_state_dict(convert(authors))
    H, W = vectors['image_size']
    x = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 3, H, W), dtype=np.float32))
    with torch.no_grad():
        outs = model.eval()(x)
    for i, out in enumerate(outs):
        expected = torch.from_numpy(vectors[f'out{i}'])
        assert (out - expected).abs().max() <= 2e-5 * expected.abs().max(), f'out{i}'


def test_agrees_with_the_authors():
    check_vectors(SwinTransformer('tiny'), weights.from_authors, 'swin_t_dense.npz')


@pytest.mark.parametrize(('window_size', 'size'), [(7, (61, 107)), (12, (100, 51))])
def test_agrees_with_mmdet_in_outputs_and_gradients(window_size, size):
    peer_class = pytest.importorskip('mmdet.models').SwinTransformer
    torch.manual_seed(0)
    depths, heads = (2, 2, 2, 2), (2, 4, 8, 16)
    peer = peer_class(embed_dims=32, depths=depths, num_heads=heads, window_size=window_size, drop_path_rate=0.0)
    for p in peer.parameters():  # norms and biases start at constants, which would hide a permutation
        p.data += 0.1 * torch.randn_like(p)
    peer.eval()
    arch = {'embed_dims': 32, 'depths': depths, 'num_heads': heads}
    ours = SwinTransformer(arch, window_size=window_size, drop_path_rate=0.0).eval()
    ours.load_state_dict(weights.from_openmmlab(peer.state_dict()))

    x = torch.randn(2, 3, *size)
    x_peer, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    outs_peer, outs_ours = peer(x_peer), ours(x_ours)
    for out, expected in zip(outs_ours, outs_peer, strict=True):
        assert (out - expected).abs().max() <= 2e-5 * expected.abs().max()
    torch.manual_seed(1)
    weight = [torch.randn_like(out) for out in outs_peer]
    for outs in (outs_peer, outs_ours):
        sum((out * w).sum() for out, w in zip(outs, weight, strict=True)).backward()
    expected = weights.from_openmmlab({n: p.grad for n, p in peer.named_parameters()})
    expected['input'] = x_peer.grad
    actual = {n: p.grad for n, p in ours.named_parameters()} | {'input': x_ours.grad}
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        assert (actual[name] - grad).abs().max() <= 2e-4 * grad.abs().max(), name


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'window_size': 0}, 'window_size=0'),
        (
            {'arch': {'embed_dims': 20, 'depths': (1,) * 4, 'num_heads': (3,) * 4}},
            r'num_heads=\(3, 3, 3, 3\): expected divisors',
        ),
        ({'arch': {'embed_dims': 20, 'depths': (1,) * 4, 'num_heads': (4,)}}, r'num_heads=\(4,\): expected 4'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SwinTransformer(**options)
