"""VOLO against timm and its authors, and what the dense form adds."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope

from mmext_backbones.backbones import VOLO
from mmext_backbones.layers import PositionEmbedding
from mmext_backbones.weights.classifiers import fit_classifier
from mmext_backbones.weights.resize import resize_position_embedding
from tests.conftest import randomize, seeded_tensor

from .test_contract import SMALL

DATA = Path(__file__).parents[1] / 'data'
# of the classifier, and of the trunk: stem, stages, positions
PARAMETERS = {
    'd1': (26_632_040, 22_904_856),
    'd2': (58_678_336, 52_398_704),
    'd3': (86_325_072, 80_045_440),
    'd4': (192_961_520, 179_610_912),
    'd5': (295_455_584, 279_744_144),
}
TIMMS = [
    pytest.param(name, size, marks=() if (name, size) == ('d1', 64) else pytest.mark.slow)
    for name in PARAMETERS
    for size in (64, 224)
]


def classifier(arch, **options):
    """As the leaves of ImageNet build it; `arch` is a name or a dict."""
    pytest.importorskip('mmpretrain')
    init_default_scope('mmpretrain')
    numbers = VOLO.ARCHS.get(arch) if isinstance(arch, str) else arch
    head = {
        'type': 'mmext_backbones.VOLOClsHead',
        'num_classes': 1000,
        'in_channels': numbers['embed_dims'][-1],
        'num_heads': numbers['num_heads'][-1],
        'mlp_ratio': numbers['mlp_ratio'],
    }
    backbone = {'type': 'mmext_backbones.VOLO', 'arch': arch, 'pyramid': False, 'out_indices': (3,)}
    backbone |= {key: options.pop(key) for key in ('out_indices', 'pos_embed_size') if key in options}
    return MODELS.build({'type': 'mmext_backbones.ImageClassifier', 'backbone': backbone, 'head': head | options})


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameter_count(arch):
    with torch.device('meta'):
        trunk, whole = VOLO(arch, pyramid=False), classifier(arch)
    assert tuple(sum(p.numel() for p in model.parameters()) for model in (whole, trunk)) == PARAMETERS[arch]


def timm_model(arch, size):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    return randomize(timm.create_model(f'volo_{arch}_224', img_size=size)).eval()


def assert_close(actual, expected, tolerance=2e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(('arch', 'size'), TIMMS)
def test_maps_and_scores_are_those_of_timm(arch, size):
    peer = timm_model(arch, size)
    model = classifier(arch, out_indices=(0, 1, 2, 3), pos_embed_size=size // 16).eval()
    model.load_state_dict(peer.state_dict())
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        maps, expected = model.backbone(x), peer.forward_intermediates(x, intermediates_only=True)
        for out, wanted in zip(maps, expected, strict=True):
            assert_close(out, wanted)
        assert_close(model.head(maps), peer(x))


def test_gradients_are_those_of_timm():
    peer = timm_model('d1', 64)
    model = classifier('d1', pos_embed_size=4).eval()
    model.load_state_dict(peer.state_dict())
    results = []
    for network in (peer, model):
        x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        scores = network(x) if network is peer else network.head(network.backbone(x))
        (scores * torch.linspace(-1, 1, scores.numel()).view_as(scores)).sum().backward()
        results.append((network, x.grad))
    theirs = {key: p.grad for key, p in peer.named_parameters()}
    expected, _ = fit_classifier(theirs | dict(peer.named_buffers()), model.state_dict(), 'VOLO', 'timm')
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name], 5e-4)  # sums of thousands of terms, in another order
    assert_close(results[1][1], results[0][1], 2e-4)


@pytest.fixture(scope='module')
def vectors():
    return np.load(DATA / 'volo_small.npz')


@pytest.fixture(scope='module')
def authors(vectors):
    """Our classifier with the weights of the authors' small network."""
    config = json.loads(str(vectors['config']))
    arch = {
        'embed_dims': config['embed_dims'],
        'depths': config['layers'],
        'num_heads': config['num_heads'],
        'mlp_ratio': config['mlp_ratios'][0],
        'stem_dims': config['stem_hidden_dim'],
    }
    model = classifier(arch, out_indices=(0, 1, 2, 3), pos_embed_size=4, num_classes=10).eval()
    weights = {}
    for key, shape in json.loads(str(vectors['keys'])).items():
        weights[key] = torch.zeros((), dtype=torch.int64)
        if shape:
            x = seeded_tensor(key, tuple(shape))
            weights[key] = x
    model.load_state_dict(weights)
    return model


def picture(vectors):
    shape = tuple(vectors['x_shape'])
    return torch.from_numpy(np.random.default_rng(int(vectors['x_seed'])).standard_normal(shape, dtype=np.float32))


def test_the_authors_maps_and_scores(vectors, authors):
    with torch.no_grad():
        maps = authors.backbone(picture(vectors))
        for i, out in enumerate(maps):
            assert_close(out, torch.from_numpy(vectors[f'stage{i}']))
        assert_close(authors.head(maps), torch.from_numpy(vectors['logits']))


def test_the_authors_scores_of_mixed_tokens(vectors, authors):
    """Their training step: cells of the map behind the stem come from the other image, scores of tokens go back."""
    top, left, bottom, right = vectors['mix.bbox'].tolist()  # on the map of stride 16

    def mix(module, args, tokens):
        mixed = tokens.clone()
        box = slice(2 * top, 2 * bottom), slice(2 * left, 2 * right)
        mixed[:, box[0], box[1]] = tokens.flip(0)[:, box[0], box[1]]
        return mixed

    handle = authors.backbone.patch_embed.register_forward_hook(mix)
    with torch.no_grad():
        scores, of_tokens = authors.head.scores(authors.backbone(picture(vectors)))
    handle.remove()
    grid = of_tokens.unflatten(1, (4, 4))
    back = grid.clone()
    back[:, top:bottom, left:right] = grid.flip(0)[:, top:bottom, left:right]
    assert_close(scores, torch.from_numpy(vectors['mix.cls']))
    assert_close(back.flatten(1, 2), torch.from_numpy(vectors['mix.aux']))


def test_the_loss_of_tokens_is_the_authors(vectors, authors):
    """With one label an image: theirs weighs the mixture's two labels for the class token, and its own for tokens."""
    cls, aux = torch.from_numpy(vectors['mix.cls']), torch.from_numpy(vectors['mix.aux'])
    target = torch.from_numpy(vectors['loss.target2'])
    top, left, bottom, right = vectors['mix.bbox'].tolist()
    share = 1 - (bottom - top) * (right - left) / aux.shape[1]
    of_image = share * target + (1 - share) * target.flip(0)

    def cross_entropy(scores, labels):
        return -(labels * scores.log_softmax(dim=-1)).sum(dim=-1).mean()

    expected = float(vectors['loss.plain2'])
    assert cross_entropy(cls, of_image) + 0.5 * cross_entropy(aux, target[:, None]) == pytest.approx(expected, rel=1e-5)


def test_the_head_learns_labels_of_tokens_from_that_of_the_image():
    structures = pytest.importorskip('mmpretrain.structures')
    model = classifier({**SMALL[VOLO], 'depths': (1, 1, 1, 1)}, num_classes=5)
    feats = (torch.randn(2, 64, 2, 3),)
    labels = torch.tensor([3, 1])
    scores, of_tokens = model.head.scores(feats)
    expected = (
        F.cross_entropy(scores, labels),
        0.5 * F.cross_entropy(of_tokens.flatten(0, 1), labels.repeat_interleave(6)),
    )
    hot = F.one_hot(labels, 5).float()
    for samples in (
        [structures.DataSample().set_gt_label(label) for label in labels],
        [structures.DataSample().set_gt_score(score) for score in hot],  # as batch augmentations leave them
    ):
        losses = model.head.loss(feats, samples)
        assert set(losses) == {'loss', 'loss_tokens'}
        torch.testing.assert_close((losses['loss'], losses['loss_tokens']), expected)


@pytest.mark.parametrize('size', [24, 10])
def test_positions_are_resampled_as_by_the_authors(vectors, size):
    table, expected = torch.from_numpy(vectors['pos.from']), torch.from_numpy(vectors[f'pos.to{size}'])
    assert_close(resize_position_embedding(table, expected.shape), expected, 1e-6)
    module = PositionEmbedding(8, 14)
    module.load_state_dict({'weight': table})
    with torch.no_grad():
        assert_close(module(torch.zeros(1, size, size, 8)), expected, 1e-6)
        assert torch.equal(module(torch.zeros(1, 14, 14, 8)), table)


def small(seed=0, **options):
    torch.manual_seed(seed)
    return randomize(VOLO(SMALL[VOLO], **options)).eval()


def test_pyramid_is_the_stages_resampled():
    model, native = small(), small(pyramid=False)
    assert not native.load_state_dict(model.state_dict(), strict=False).missing_keys
    x = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        maps, levels = native(x), model(x)
        assert [tuple(m.shape[2:]) for m in maps] == [(6, 9), (3, 5), (3, 5), (3, 5)]
        expected = [
            model.upsample(F.pad(native_padded(native, x), (0, 0))).permute(0, 3, 1, 2)[..., :12, :18],
            maps[0],
            maps[-1],
            F.avg_pool2d(maps[-1], 2, ceil_mode=True, count_include_pad=False),
        ]
        for i, (out, level) in enumerate(zip(levels, expected, strict=True)):
            normed = getattr(model, f'norm{i}')(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(out, normed, rtol=1e-5, atol=1e-5)


def native_padded(native, x):
    """The map of stage 0 with its padding, [B, H, W, C]."""
    H, W = x.shape[2:]
    padded = F.pad(x, (0, -W % 16, 0, -H % 16))
    return native(padded)[0].permute(0, 2, 3, 1)


def test_any_size_is_that_of_the_padded_image():
    native = small(pyramid=False)
    for size in ((1, 1), (33, 50), (16, 100)):
        x = torch.randn(1, 3, *size)
        padded = F.pad(x, (0, -size[1] % 16, 0, -size[0] % 16))
        with torch.no_grad():
            for out, whole, stride in zip(native(x), native(padded), native.out_strides, strict=True):
                h, w = (math.ceil(n / stride) for n in size)
                torch.testing.assert_close(out, whole[..., :h, :w])


def test_windows_of_the_whole_map_are_global_attention():
    model, windows = small(), small(window_size=14)
    windows.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 180, 224)  # 12 x 14 tokens, in windows of 14 x 14
    with torch.no_grad():
        for out, expected in zip(windows(x), model(x), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    kinds = [[block.attn.window_size for block in stage.blocks] for stage in windows.stages[1:]]
    assert kinds == [[14, None]] * 3  # the last block of a stage sees all


def test_windows_keep_apart_what_global_attention_joins():
    x = torch.randn(1, 3, 160, 160).requires_grad_()  # the first stage alone reaches half of that
    for window_size, reached in ((None, True), (2, False)):
        model = small(pyramid=False, out_indices=(1,), window_size=window_size)
        model.stages[1].blocks = model.stages[1].blocks[:1]  # in windows
        (grad,) = torch.autograd.grad(model(x)[0][0, :, 0, 0].sum(), x)
        assert bool(grad[..., -8:, -8:].any()) is reached


def test_stages_and_positions_that_nobody_needs_are_not_built():
    assert [len(small(out_indices=i).stages) for i in ((0, 1), (2,), (3,))] == [1, 4, 4]
    first = small(out_indices=(0, 1))
    assert not hasattr(first, 'absolute_pos_embed')
    assert first.stages[0].downsample is None
    assert len(small(pyramid=False, out_indices=(1,)).stages) == 2


def test_norm_eval_keeps_the_statistics_of_the_stem():
    model = small(norm_eval=True).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.named_buffers())
    assert model.patch_embed.norm1.weight.grad is not None
    assert model.training
    plain = small().train()
    plain(torch.randn(2, 3, 32, 32))
    assert any(not torch.equal(value, before[key]) for key, value in plain.named_buffers())


def test_layers_of_learning_rates():
    model = small()
    depths = {name: model.get_layer_depth(name)[0] for name, _ in model.named_parameters()}
    assert depths['patch_embed.conv1.weight'] == depths['absolute_pos_embed.weight'] == 0
    assert depths['stages.0.blocks.1.attn.v.weight'] == depths['stages.0.downsample.weight'] == 2
    assert depths['stages.3.blocks.1.attn.qkv.weight'] == 8
    assert depths['upsample.weight'] == depths['norm2.weight'] == 9


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def test_a_dense_network_takes_a_classifier(tmp_path):
    peer = timm_model('d1', 64)
    old = peer.state_dict() | {'pos_embed': peer.pos_embed.flatten(1, 2)}  # as early files hold it
    x = torch.randn(1, 3, 64, 64)
    for i, weights in enumerate((peer.state_dict(), {'state_dict_ema': {f'module.{k}': v for k, v in old.items()}})):
        torch.save(weights, tmp_path / f'{i}.pth')
        model = VOLO('d1', pos_embed_size=4).eval()
        report = model.load_pretrained(str(tmp_path / f'{i}.pth'))
        assert report.complete
        assert {key.split('.')[0] for key in report.fresh} == {'upsample', 'norm0', 'norm1', 'norm3'}
        assert {key.split('.')[0] for key in map(_bare, report.ignored)} == {
            'cls_token', 'post_network', 'norm', 'head', 'aux_head'
        }  # fmt: skip
        with torch.no_grad():
            tokens = peer.forward_features(x)[:, 1:]  # normed, and as they came out of the last stage
            assert_close(model(x)[2].flatten(2).transpose(1, 2), tokens)


def _bare(key):
    return re.sub(r'^(state_dict_ema\.|module\.)+', '', key)


def test_positions_of_another_size_are_resampled_and_told(tmp_path):
    torch.save(small(pos_embed_size=24).state_dict(), tmp_path / 'large.pth')
    model = small(seed=1)
    report = model.load_pretrained(str(tmp_path / 'large.pth'))
    assert report.resized == {'absolute_pos_embed.weight': (1, 24, 24, 64)}
    assert report.complete
    kept = small(seed=1, pos_embed_size=24)
    assert not kept.load_pretrained(str(tmp_path / 'large.pth')).resized


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'window_size': 0}, 'window_size=0: expected a whole number, at least 1'),
        ({'pos_embed_size': '14'}, "pos_embed_size='14'"),
        ({'norm_eval': 'yes'}, "norm_eval='yes'"),
        (
            {'arch': {**SMALL[VOLO], 'embed_dims': (32, 64, 64, 128)}},
            r'embed_dims=\(32, 64, 64, 128\): expected one width',
        ),
        ({'arch': {**SMALL[VOLO], 'num_heads': (3, 2, 2, 2)}}, r'num_heads=\(3, 2, 2, 2\): expected divisors'),
        (
            {'arch': {key: value[:1] if isinstance(value, tuple) else value for key, value in SMALL[VOLO].items()}},
            r'embed_dims=\(32,\): expected two stages or more',
        ),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        VOLO(**({'arch': SMALL[VOLO]} | options))
