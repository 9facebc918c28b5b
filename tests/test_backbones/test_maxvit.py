"""MaxViT against timm at the sizes that timm takes, and against a loop over the tokens of a group at all others."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.backbones import MaxViT
from mmext_backbones.backbones.maxvit import MaxViTBlock
from mmext_backbones.layers import PartitionAttention, SameConv2d
from mmext_backbones.ops import partition
from mmext_backbones.weights import maxvit as weights
from tests.conftest import randomize

# of the backbone, and of the published classifier
PARAMETERS = {
    'tiny': (30_139_848, 30_916_528),
    'small': (67_566_828, 68_927_956),
    'base': (118_106_580, 119_467_708),
    'large': (209_708_912, 211_785_560),
    'xlarge': (471_051_048, 474_951_952),
}
SMALL = {'embed_dims': (32, 64, 64, 96), 'depths': (1, 1, 2, 1), 'stem_dims': 32}


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameter_count(arch):
    with torch.device('meta'):
        model = MaxViT(arch)
    parameters = sum(p.numel() for p in model.parameters())
    C = model.out_channels[-1]
    head = 2 * C + (C + 1) * C + (C + 1) * 1000  # norm, hidden layer, classes
    assert (parameters, parameters + head) == PARAMETERS[arch]


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def timms(arch):
    """timm's name of an architecture, and the numbers that make it narrow."""
    if arch is SMALL:
        numbers = {'embed_dim': arch['embed_dims'], 'depths': arch['depths'], 'stem_width': arch['stem_dims']}
        return 'maxvit_tiny_tf_224', numbers
    return f'maxvit_{arch}_tf_224', {}


def timm_model(arch, size=(224, 224), grad=False):
    """timm's network for images of one size, with windows of 7; random parameters, statistics of a random batch.

    (With random statistics the maps grow to thousands, and rounding with them.)
    """
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    name, numbers = timms(arch)
    model = timm.create_model(
        name,
        img_size=size,
        transformer_window_size=(7, 7),
        features_only=True,
        out_indices=(1, 2, 3, 4),
        **numbers,
    )
    randomize(model)
    for norm in batch_norms(model):
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(2, 3, *size))
    return model.eval().requires_grad_(grad)


def ours_from(peer, arch, **options):
    model = MaxViT(arch, drop_path_rate=0.0, **options).eval()
    model.load_state_dict(peer.state_dict())  # timm's layout is recognised
    return model


@pytest.mark.parametrize(
    ('arch', 'size'),
    [
        pytest.param(SMALL, (224, 224), id='narrow-size0'),
        pytest.param(SMALL, (448, 672), id='narrow-size1'),
        *(pytest.param(arch, (224, 224), marks=pytest.mark.slow) for arch in ('tiny', 'small', 'base')),
        pytest.param('tiny', (448, 672), marks=pytest.mark.slow),
    ],
)
def test_agrees_with_timm(arch, size):
    peer = timm_model(arch, size)
    ours = ours_from(peer, arch)
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        for out, expected in zip(ours(x), peer(x), strict=True):
            assert (out - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_agrees_with_timm_in_gradients():
    peer = timm_model(SMALL, grad=True).train()
    ours = ours_from(peer, SMALL).train()  # batch norm by the batch
    x = torch.randn(2, 3, 224, 224)
    x_peer, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    outs_peer, outs_ours = peer(x_peer), ours(x_ours)
    weight = [torch.randn_like(out) for out in outs_peer]
    for outs in (outs_peer, outs_ours):
        sum((out * w).sum() for out, w in zip(outs, weight, strict=True)).backward()
    grads = {key: p.grad for key, p in peer.named_parameters()}
    expected = weights.from_timm(grads) | {'input': x_peer.grad}
    actual = {key: p.grad for key, p in ours.named_parameters()} | {'input': x_ours.grad}
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        # a constant before a batch norm, and a bias of all keys, have no gradient but rounding: hence the second term
        tolerance = 1e-3 * grad.abs().max() + 1e-5 * max(g.abs().max() for g in expected.values())
        assert (actual[name] - grad).abs().max() <= tolerance, name


def attention_by_loop(attn, x, window_size):
    """Attention of every token to the tokens that exist in its group, one group at a time."""
    B, H, W, C = x.shape
    h, w = window_size
    bias = attn.bias(window_size)
    q, k, v = attn.qkv(x).view(B, H, W, 3, attn.num_heads, -1).unbind(3)
    out = torch.zeros(B, H, W, C, dtype=x.dtype)
    rows, cols = -(-H // h), -(-W // w)  # windows, or edge of a grid cell
    for i, j in itertools.product(range(rows), range(cols)):
        places = [
            (r * rows + i, c * cols + j) if attn.grid else (i * h + r, j * w + c) for r in range(h) for c in range(w)
        ]
        valid = [n for n, (r, c) in enumerate(places) if r < H and c < W]
        r, c = (torch.tensor([places[n][axis] for n in valid]) for axis in (0, 1))
        logits = torch.einsum('bqhd,bkhd->bhqk', q[:, r, c], k[:, r, c]) * attn.scale + bias[:, valid][:, :, valid]
        out[:, r, c] = torch.einsum('bhqk,bkhd->bqhd', logits.softmax(-1), v[:, r, c]).flatten(2)
    return attn.proj(out)


@pytest.mark.parametrize('grid', [False, True], ids=['window', 'grid'])
@pytest.mark.parametrize('size', [(14, 21), (15, 20), (8, 8), (1, 1), (3, 30), (13, 7), (25, 42)], ids=str)
@pytest.mark.parametrize('window_size', [(7, 7), (3, 5)], ids=str)
def test_attention_is_over_the_tokens_of_the_map_only(grid, size, window_size):
    torch.manual_seed(0)
    attn = randomize(PartitionAttention(64, 2, grid=grid)).double()
    x = torch.randn(2, *size, 64, dtype=torch.float64, requires_grad=True)
    actual, expected = attn(x, window_size), attention_by_loop(attn, x, window_size)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    grad = torch.randn_like(actual)
    inputs = [x, *attn.parameters()]
    for ours, loop in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, loop, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('size', [(100, 157), (33, 250)])
def test_garbage_in_the_padding_changes_nothing(monkeypatch, size):
    torch.manual_seed(0)
    monkeypatch.setenv('MMEXT_WINDOW_ATTENTION_BACKEND', 'torch')  # the others have no padding
    model = MaxViT(SMALL).eval()
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = model(x)
        calls = []

        def pad_with_garbage(x, pads):
            if any(pads):
                calls.append(pads)
            return F.pad(x, pads, value=1e3)

        monkeypatch.setattr(partition, 'zero_pad', pad_with_garbage)
        outs = model(x)
    assert len(calls) >= 8  # windows and grids of most stages
    for out, clean in zip(outs, expected, strict=True):
        assert torch.equal(out, clean)


def test_sizes_that_divide_take_no_mask():
    assert partition.padding_mask((28, 56), (7, 7), True, torch.device('cpu')) is None
    assert partition.padding_mask((28, 55), (7, 7), True, torch.device('cpu')) is not None


def test_masks_differ_by_group_in_a_grid_only():
    window = partition.padding_mask((10, 7), (7, 7), False, torch.device('cpu'))  # two windows, the second 3 rows high
    assert (window[:, 0] == 0).sum(1).tolist() == [49, 21]
    grid = partition.padding_mask((10, 7), (7, 7), True, torch.device('cpu'))  # cells of 2 x 1: rows 10 to 13 missing
    assert (grid[:, 0] == 0).sum(1).tolist() == [35, 35]
    grid = partition.padding_mask((13, 7), (7, 7), True, torch.device('cpu'))
    assert (grid[:, 0] == 0).sum(1).tolist() == [49, 42]


def test_scaled_windows_grow_with_the_image_and_resample_the_table():
    torch.manual_seed(0)
    fixed = randomize(MaxViT(SMALL)).eval()
    scaled = MaxViT(SMALL, window_size='scaled').eval()
    scaled.load_state_dict(fixed.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for out, expected in zip(scaled(x), fixed(x), strict=True):  # 224 / 32 is 7
            assert torch.equal(out, expected)
        assert scaled.window_of((640, 897)) == (20, 29)
        attn = scaled.stages[0].blocks[0].attn_window.attn
        table = attn.relative_position_bias_table
        resampled = F.interpolate(table[None], (39, 57), mode='bilinear')[0]
        bias = attn.bias((20, 29))
        query, key = (3, 7), (15, 2)
        assert torch.equal(
            bias[:, query[0] * 29 + query[1], key[0] * 29 + key[1]],
            resampled[:, key[0] - query[0] + 19, key[1] - query[1] + 28],
        )
        assert [tuple(out.shape[2:]) for out in scaled(torch.randn(1, 3, 70, 131))] == [
            (18, 33),
            (9, 17),
            (5, 9),
            (3, 5),
        ]


@pytest.mark.parametrize('arch', [pytest.param(SMALL, id='narrow'), pytest.param('tiny', marks=pytest.mark.slow)])
def test_scaled_windows_agree_with_timm(arch):
    timm = pytest.importorskip('timm')
    torch.manual_seed(0)
    name, numbers = timms(arch)
    peer = timm.create_model(name, img_size=(96, 160), features_only=True, out_indices=(1, 2, 3, 4), **numbers)
    peer = randomize(peer).eval()
    ours = MaxViT(arch, window_size='scaled').eval()
    for module in ours.modules():  # timm's tables are those of its windows, 3 x 5
        if isinstance(module, PartitionAttention):
            module.relative_position_bias_table = torch.nn.Parameter(torch.zeros(module.num_heads, 5, 9))
    ours.load_state_dict(peer.state_dict())
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        for out, expected in zip(ours(x), peer(x), strict=True):
            assert (out - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize('size', [(8, 8), (9, 9), (8, 9), (1, 1), (2, 7)], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
def test_convolutions_pad_as_tensorflow(size, stride):
    conv = SameConv2d(2, 3, 3, stride).double()
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    out = conv(x)
    assert tuple(out.shape[2:]) == tuple(-(-n // stride) for n in size)
    # the definition: output i sees inputs from i * stride - floor(total / 2)
    first = [max(0, (-(-n // stride) - 1) * stride + 3 - n) // 2 for n in size]
    for i, j in itertools.product(*map(range, out.shape[2:])):
        expected = conv.bias.clone()
        for dy, dx in itertools.product(range(3), range(3)):
            y, x_ = i * stride - first[0] + dy, j * stride - first[1] + dx
            if 0 <= y < size[0] and 0 <= x_ < size[1]:
                expected = expected + conv.weight[:, :, dy, dx] @ x[0, :, y, x_]
        torch.testing.assert_close(out[0, :, i, j], expected)


def test_pooled_shortcut_averages_the_pixels_that_exist():
    block = MaxViTBlock(32, 32, 2, 7, 0.0)
    x = torch.arange(9.0).view(1, 3, 3, 1).expand(1, 3, 3, 32)
    assert block.shortcut(x)[0, ..., 0].tolist() == [[2.0, 3.5], [6.5, 8.0]]


def test_running_statistics_count_each_batch_once():
    buffers = []
    for with_cp in (False, True):
        torch.manual_seed(0)
        model = MaxViT(SMALL, with_cp=with_cp, drop_path_rate=0.0).train()
        sum(out.sum() for out in model(torch.randn(2, 3, 64, 96))).backward()
        assert {int(norm.num_batches_tracked) for norm in batch_norms(model)} == {1}
        assert {norm.momentum for norm in batch_norms(model)} == {0.01}
        buffers.append(dict(model.named_buffers()))
    for name, expected in buffers[0].items():
        assert torch.equal(buffers[1][name], expected), name


def test_norm_eval_keeps_statistics_and_trains_weights():
    torch.manual_seed(0)
    model = MaxViT(SMALL, norm_eval=True, drop_path_rate=0.0)
    assert model.train() is model
    assert model.training
    assert not any(norm.training for norm in batch_norms(model))
    before = [norm.running_mean.clone() for norm in batch_norms(model)]
    sum((out**2).sum() for out in model(torch.randn(1, 3, 32, 32))).backward()
    assert all(torch.equal(norm.running_mean, mean) for norm, mean in zip(batch_norms(model), before, strict=True))
    assert all(norm.weight.grad.any() for norm in batch_norms(model))


def test_sync_batch_norm_conversion():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(MaxViT(SMALL, norm_eval=True))
    assert not batch_norms(model)
    model.train()
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.SyncBatchNorm))
    with torch.no_grad():
        assert len(model(torch.randn(1, 3, 40, 40))) == 4  # in eval mode it needs no process group


def test_output_norms_are_optional():
    plain, normed = MaxViT(SMALL), MaxViT(SMALL, out_norm=True, out_indices=(1, 3))
    assert not any(name.startswith('norm') for name, _ in plain.named_children())
    assert [name for name, _ in normed.named_children() if name.startswith('norm')] == ['norm1', 'norm3']


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'window_size': 0}, 'window_size=0'),
        ({'window_size': 'large'}, "window_size='large': expected at least 1, or 'scaled'"),
        ({'arch': {**SMALL, 'embed_dims': (32, 64, 64)}}, r'embed_dims=\(32, 64, 64\): expected 4'),
        ({'arch': {**SMALL, 'embed_dims': (32, 64, 64, 80)}}, r'embed_dims=.* multiples of 32'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MaxViT(**options)
