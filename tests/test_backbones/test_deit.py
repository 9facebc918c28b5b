"""DeiT with and without the ghost head: timm's numbers, counts, sizes."""

import pytest
import torch

from mmext_backbones.backbones import DeiT
from tests.conftest import randomize
from tests.test_backbones.test_contract import check_maps, image, loss

SMALL = {'embed_dims': 24, 'depths': (2,), 'num_heads': (2,)}


def test_parameter_count():
    """DeiT-Ti has 5,717,416 (2012.12877: 5.7 M) with a class token, its position and 1000 classes."""
    with torch.device('meta'):
        plain, ghost = (sum(p.numel() for p in DeiT(ghost=flag).parameters()) for flag in (False, True))
    assert plain == 5_717_416 - 2 * 192 - (192 * 1000 + 1000)
    assert ghost - plain == 12 * 2 * 6 * 27 * 27


@pytest.mark.parametrize('size', [(224, 224), (96, 160)])
def test_plain_agrees_with_timm(size):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    options = {'class_token': False, 'global_pool': '', 'num_classes': 0, 'patch_size': 16, 'img_size': 224}
    peer = timm.models.vision_transformer.VisionTransformer(
        **options, embed_dim=24, depth=2, num_heads=2, dynamic_img_size=True
    )
    peer = randomize(peer).eval()
    ours = DeiT(SMALL, ghost=False).eval()
    weights = {}
    for key, value in peer.state_dict().items():
        key = key.replace('blocks.', 'stages.0.blocks.') if key.startswith('blocks.') else key
        key = f'norm0.{key[5:]}' if key.startswith('norm.') else key
        if key == 'pos_embed':
            key, value = 'patch_embed.absolute_pos_embed', value.view(1, 14, 14, 24)
        weights[key] = value
    ours.load_state_dict(weights)
    x = image(*size)
    with torch.no_grad():
        expected = peer.forward_features(x).transpose(1, 2).reshape(1, 24, size[0] // 16, size[1] // 16)
        (out,) = ours(x)
    if size != (224, 224):  # timm resamples positions with another antialiasing filter
        assert (out - expected).abs().max() <= 5e-2 * expected.abs().max()
    else:
        assert (out - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_any_size_and_a_gradient_for_every_parameter():
    torch.manual_seed(0)
    model = DeiT(SMALL, drop_path_rate=0.0).eval()
    assert (model.out_channels, model.out_strides) == ((24,), (16,))
    for size in [(1, 1), (65, 97), (31, 225), (224, 224)]:
        check_maps(model, *size)
    loss(model.train()(image(40, 72, batch=2))).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'arch': {**SMALL, 'depths': (1, 1), 'num_heads': (2, 2)}}, r'depths=\(1, 1\): expected one number'),
        ({'arch': {**SMALL, 'num_heads': (8,)}}, r'num_heads=\(8,\): expected twice as many to divide embed_dims=24'),
        ({'ghost': 'no'}, "ghost='no': expected True or False"),
        ({'out_indices': (1,)}, r'out_indices=\(1,\)'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DeiT(**({'arch': SMALL} | options))
