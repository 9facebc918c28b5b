"""Every published layout is recognised by its keys, converts without a remainder, and gives the original's numbers."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.weights import swin
from mmext_backbones.weights.fitting import fit
from mmext_backbones.weights.layouts import FAMILIES, family_of, find_layout, find_places
from tests.conftest import randomize

VOLO_ARCH = {
    'embed_dims': (16, 32, 32, 32),
    'depths': (1, 2, 1, 1),
    'num_heads': (1, 2, 2, 2),
    'mlp_ratio': 3,
    'stem_dims': 8,
}
SWIN = {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8)}
SMALL = {
    SwinTransformer: SWIN,
    ELSASwin: {**SWIN, 'group_width': 4},
    MaxViT: {'embed_dims': (32, 64, 64, 96), 'depths': (1, 1, 2, 1), 'stem_dims': 32},
    Sequencer2D: {'embed_dims': (16, 32, 32, 32), 'depths': (1, 2, 1, 1), 'hidden_dims': (4, 8, 8, 8)},
    VOLO: VOLO_ARCH,
    ELSAVOLO: {**VOLO_ARCH, 'kernel_size': 5, 'group_width': 8},
}


def small(cls, seed=0, **options):
    torch.manual_seed(seed)
    return randomize(cls(SMALL[cls], **options)).eval()


def authors_swin(state_dict):
    """As the authors of Swin write their classifiers: no norms of maps, a head, derived buffers."""
    renamed = {re.sub('^stages', 'layers', k): v for k, v in state_dict.items() if not re.match(r'norm\d', k)}
    renamed |= {'norm.weight': torch.ones(128), 'norm.bias': torch.ones(128), 'head.weight': torch.ones(9, 128)}
    renamed |= {'head.bias': torch.ones(9), 'layers.0.blocks.1.attn_mask': torch.zeros(64, 49, 49)}
    renamed['layers.0.blocks.0.attn.relative_position_index'] = torch.zeros(49, 49, dtype=torch.int64)
    return renamed


def authors_elsa(state_dict):
    """As the authors of ELSA write their detectors' backbones: inverse of every step of our table."""
    renamed = {}
    for key, value in state_dict.items():
        new = re.sub('^stages', 'layers', key)
        match = re.match(r'(layers\.(\d)\.blocks\.\d+\.attn\.)(.*)', new)
        if match and match.group(2) == '3':
            start, _, name = match.groups()
            if name.startswith('qkv'):
                q, k, v = value.chunk(3)
                new, value = start + name.replace('qkv', 'pre_proj'), torch.cat((v, q, k))
            elif name == 'relative_position_bias_table':
                new, value = start + 'rb', value.T.flip(1)
            else:
                new = start + name.replace('proj', 'post_proj')
        elif match:
            start, _, name = match.groups()
            part, _, end = name.partition('.')
            part = {'qkv': 'pre_proj', 'filter_conv': 'attn.0', 'filter_proj': 'attn.2', 'proj': 'post_proj'}.get(
                part, part
            )
            if part in ('pre_proj', 'attn.2') and end == 'weight':
                value = value[:, :, None, None]
            if part == 'ghost_head':
                value = value[None]
            new = start + part + (f'.{end}' if end else '')
        renamed[new] = value
    return renamed


def authors_sequencer(state_dict, depths=SMALL[Sequencer2D]['depths']):
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith(('upsample', 'norm0', 'norm1', 'norm3')):
            continue
        new = key.replace('patch_embed.', 'stem.').replace('norm2.', 'norm.', key.startswith('norm2'))
        down = re.fullmatch(r'stages\.(\d)\.downsample\.(.*)', key)
        if down:
            new = f'blocks.{down.group(1)}.{depths[int(down.group(1))]}.down.{down.group(2)}'
        new = re.sub(r'stages\.(\d)\.blocks\.(\d+)\.', r'blocks.\1.\2.', new)
        new = (
            new.replace('.attn.proj.', '.rnn_tokens.fc.')
            .replace('.attn.', '.rnn_tokens.')
            .replace('.mlp.', '.mlp_channels.')
        )
        renamed[new] = value
    return renamed | {'head.weight': torch.ones(9, 32), 'head.bias': torch.ones(9)}


def authors_volo(state_dict):
    """As timm and the authors of VOLO write their classifiers."""
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith(('upsample', 'norm0', 'norm1', 'norm3')):
            continue
        new = re.sub(r'^patch_embed\.conv(\d)', lambda m: f'patch_embed.conv.{3 * int(m[1]) - 3}', key)
        new = re.sub(r'^patch_embed\.norm(\d)', lambda m: f'patch_embed.conv.{3 * int(m[1]) - 2}', new)
        new = re.sub(r'^stages\.0\.downsample', 'network.1.proj', new)
        new = re.sub(r'^stages\.(\d)\.blocks', lambda m: f'network.{int(m[1]) + (m[1] != "0")}', new)
        new = new.replace('absolute_pos_embed.weight', 'pos_embed')
        renamed[new.replace('norm2.', 'norm.') if key.startswith('norm2') else new] = value
    head = {f'{name}.weight': torch.ones(9, 32) for name in ('head', 'aux_head', 'post_network.0.attn.q')}
    return renamed | head | {'cls_token': torch.ones(1, 1, 32)}


FABRICATED = [
    pytest.param(SwinTransformer, authors_swin, 'the authors of Swin', id='swin-authors'),
    pytest.param(ELSASwin, authors_elsa, 'the authors of ELSA', id='elsa-authors'),
    pytest.param(Sequencer2D, authors_sequencer, 'the authors of Sequencer', id='sequencer-authors'),
    pytest.param(SwinTransformer, swin.to_openmmlab, 'OpenMMLab', id='swin-openmmlab'),
    pytest.param(SwinTransformer, swin.to_timm, 'timm', id='swin-timm'),
    pytest.param(VOLO, authors_volo, 'timm and the authors of VOLO', id='volo'),
]


@pytest.mark.parametrize(('cls', 'fabricate', 'name'), FABRICATED)
def test_round_trips_are_exact(cls, fabricate, name):
    options = {'patch_size': 8} if cls is Sequencer2D else {}
    state_dict = small(cls, **options).state_dict()
    foreign = fabricate(state_dict)
    layout, prefix = find_layout(foreign, cls.__name__)
    assert (layout.name, prefix) == (name, '')
    back = layout.convert(foreign)
    assert set(state_dict) >= set(back)
    for key, value in back.items():
        assert torch.equal(value, state_dict[key]), key
    lost = {key.split('.')[0] for key in set(state_dict) - set(back)}
    assert lost <= {'norm0', 'norm1', 'norm2', 'norm3', 'upsample'}


@pytest.mark.parametrize(('cls', 'fabricate', 'name'), FABRICATED)
@pytest.mark.parametrize('prefix', ['', 'module.', 'backbone.', 'module.backbone.', 'student.net.'])
def test_any_prefix_loads(cls, fabricate, name, prefix):
    source, target = small(cls), small(cls, seed=1)
    foreign = {prefix + key: value for key, value in fabricate(source.state_dict()).items()}
    if prefix:
        foreign |= {'rpn_head.conv.weight': torch.ones(3), 'neck.norm.bias': torch.ones(3)}
    result = target.load_state_dict(foreign, strict=False)
    assert not result.unexpected_keys
    assert {key.split('.')[0] for key in result.missing_keys} <= {'norm0', 'norm1', 'norm2', 'norm3', 'upsample'}
    loaded = target.state_dict()
    for key, value in source.state_dict().items():
        if key not in result.missing_keys:
            assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize(('cls', 'fabricate', 'name'), FABRICATED)
def test_a_whole_model_loads_its_backbone_and_its_heads(cls, fabricate, name):
    class Detector(nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.backbone = small(cls, seed)
            self.head = nn.Linear(2, 2)

    source, target = Detector(0), Detector(1)
    foreign = {f'backbone.{key}': value for key, value in fabricate(source.backbone.state_dict()).items()}
    foreign |= {f'head.{key}': value for key, value in source.head.state_dict().items()}
    missing = target.load_state_dict(foreign, strict=False).missing_keys
    for key, value in source.state_dict().items():
        if key not in missing:
            assert torch.equal(target.state_dict()[key], value), key


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_swin_of_openmmlab_gives_its_numbers(library):
    models = pytest.importorskip(f'{library}.models')
    peer_class = (models.backbones if library == 'mmpretrain' else models).SwinTransformer
    options = {'window_size': 7, 'drop_path_rate': 0.0, 'out_indices': (0, 1, 2, 3)}
    torch.manual_seed(0)
    if library == 'mmpretrain':
        arch = {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8)}
        peer = peer_class(arch, img_size=64, pad_small_map=True, **options)
    else:
        peer = peer_class(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), **options)
    randomize(peer)
    peer.eval()
    ours = small(SwinTransformer, seed=1)
    missing, unexpected = ours.load_state_dict(peer.state_dict(), strict=False)
    assert not unexpected
    assert {key.split('.')[0] for key in missing} <= ({'norm0', 'norm1', 'norm2'} if library == 'mmpretrain' else set())
    x = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        outs, expected = ours(x), peer(x)
    for i, (out, reference) in enumerate(zip(outs, expected, strict=True)):
        if f'norm{i}.weight' not in missing:
            assert (out - reference).abs().max() <= 2e-5 * reference.abs().max()


def test_swin_of_timm_gives_its_numbers():
    timm = pytest.importorskip('timm.models.swin_transformer')
    torch.manual_seed(0)
    options = {'embed_dim': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8), 'window_size': 7, 'num_classes': 9}
    peer = randomize(timm.SwinTransformer(img_size=448, drop_path_rate=0.0, **options)).eval()
    ours = small(SwinTransformer, seed=1)
    missing, unexpected = ours.load_state_dict(peer.state_dict(), strict=False)
    assert not unexpected
    assert {key.split('.')[0] for key in missing} == {'norm0', 'norm1', 'norm2', 'norm3'}  # a classifier has none
    for i in range(4):
        setattr(ours, f'norm{i}', nn.Identity())
    x = torch.randn(1, 3, 448, 448)
    with torch.no_grad():
        expected = peer.forward_intermediates(x, intermediates_only=True)
        for out, reference in zip(ours(x), expected, strict=True):
            assert (out - reference).abs().max() <= 2e-5 * reference.abs().max()


@pytest.mark.parametrize('cls', SMALL)
def test_our_own_layout_is_left_alone(cls):
    state_dict = small(cls).state_dict()
    layout, prefix = find_layout(state_dict, cls.__name__)
    assert (layout.convert, prefix) == (None, '')
    small(cls, seed=1).load_state_dict(state_dict)
    del state_dict[next(iter(state_dict))]
    with pytest.raises(RuntimeError, match='Missing key'):
        small(cls, seed=1).load_state_dict(state_dict)


@pytest.mark.parametrize('cls', SMALL)
def test_a_family_takes_no_other(cls):
    for other in SMALL:
        if other is not cls:
            assert find_layout(small(other).state_dict(), cls.__name__) is None


def test_subclasses_are_of_the_family():
    class Mine(ELSASwin):
        pass

    assert family_of(Mine) == 'ELSASwin'
    assert family_of(nn.Linear) is None
    assert set(FAMILIES) == {cls.__name__ for cls in SMALL}


def test_of_two_networks_the_trained_one_comes_first():
    state_dict = small(SwinTransformer).state_dict()
    for names, first in (
        (('student', 'teacher'), 'student.'),
        (('teacher', 'student'), 'student.'),
        (('model_ema', 'net'), 'net.'),
        (('momentum_encoder', 'encoder'), 'encoder.'),
        (('ema', 'backbone'), 'backbone.'),
    ):
        both = {f'{name}.{key}': value for name in names for key, value in state_dict.items()}
        assert find_layout(both, 'SwinTransformer')[1] == first
        assert len(find_places(both, 'SwinTransformer')) == 2
    ema = {f'ema.{key}': value for key, value in state_dict.items()} | state_dict
    assert find_layout(ema, 'SwinTransformer')[1] == ''


# --------------------------------------------------------------------------------------------------------------------
# Every size: names and shapes alone, on the meta device

TIMM_MODELS = [
    *(('SwinTransformer', arch, 7, f'swin_{arch}_patch4_window7_224') for arch in SwinTransformer.ARCHS),
    *(('SwinTransformer', arch, 12, f'swin_{arch}_patch4_window12_384') for arch in ('base', 'large')),
    *(('MaxViT', arch, 7, f'maxvit_{arch}_tf_224') for arch in MaxViT.ARCHS if arch != 'xlarge'),
    *(('MaxViT', arch, 12, f'maxvit_{arch}_tf_384') for arch in MaxViT.ARCHS),
    *(('MaxViT', arch, 16, f'maxvit_{arch}_tf_512') for arch in MaxViT.ARCHS),
    *(('Sequencer2D', arch, None, f'sequencer2d_{arch[0]}') for arch in Sequencer2D.ARCHS),
    *(('VOLO', arch, None, f'volo_{arch}_224') for arch in VOLO.ARCHS),
]
SMALLEST = ('tiny', 'small')  # the others have more of the same names


def fit_on_meta(cls, arch, state_dict, **options):
    with torch.device('meta'):
        wanted = cls(arch, **options).state_dict()
    return fit(state_dict, wanted, cls.__name__, 'test')[1]


@pytest.mark.parametrize(
    ('family', 'arch', 'window_size', 'name'),
    [pytest.param(*row, marks=() if row[1] in SMALLEST else pytest.mark.slow) for row in TIMM_MODELS],
    ids=str,
)
def test_every_published_timm_model_is_explained(family, arch, window_size, name):
    timm = pytest.importorskip('timm')
    cls = {c.__name__: c for c in SMALL}[family]
    with torch.device('meta'):
        state_dict = timm.create_model(name).state_dict()
    options = {} if window_size is None else {'window_size': window_size}
    if family == 'Sequencer2D':
        options = {'patch_size': 7, 'pyramid': False}
    report = fit_on_meta(cls, arch, state_dict, **options)
    layout = 'timm and the authors of VOLO' if cls is VOLO else 'timm'
    assert (report.layout, report.complete) == (layout, True), str(report)
    assert not report.resized
    assert {key.split('.')[0] for key in report.fresh} <= {'norm0', 'norm1', 'norm2', 'norm3', 'upsample'}


@pytest.mark.parametrize(('cls', 'fabricate', 'name'), FABRICATED)
def test_every_size_is_explained(cls, fabricate, name):
    for arch, numbers in cls.ARCHS.items():
        options = {'window_size': 12} if cls is SwinTransformer and arch in ('base', 'large') else {}
        with torch.device('meta'):
            state_dict = cls(arch, **options).state_dict()
        # the authors' names of Sequencer hold the depths
        foreign = fabricate(state_dict, numbers['depths']) if cls is Sequencer2D else fabricate(state_dict)
        report = fit_on_meta(cls, arch, foreign, **options)
        assert (report.layout, report.complete) == (name, True), str(report)
        assert not report.resized


# what mmdet 2.11 calls the parts of Mask R-CNN beside the backbone
MMDET_2_HEADS = [
    *(f'neck.{part}.{i}.conv' for part in ('lateral_convs', 'fpn_convs') for i in range(4)),
    *('rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg'),
    *(f'roi_head.bbox_head.{part}' for part in ('shared_fcs.0', 'shared_fcs.1', 'fc_cls', 'fc_reg')),
    *(f'roi_head.mask_head.convs.{i}.conv' for i in range(4)),
    *('roi_head.mask_head.upsample', 'roi_head.mask_head.conv_logits'),
]
# and what mmsegmentation 0.11 calls those of UperNet: classifiers with a bias, and convolutions under a batch norm
MMSEG_0_HEADS = [f'{head}.conv_seg.{end}' for head in ('decode_head', 'auxiliary_head') for end in ('weight', 'bias')]
MMSEG_0_HEADS += [
    f'{name}.{part}'
    for name in (
        *(f'decode_head.psp_modules.{i}.1' for i in range(4)),
        *(f'decode_head.{part}.{i}' for part in ('lateral_convs', 'fpn_convs') for i in range(3)),
        *('decode_head.bottleneck', 'decode_head.fpn_bottleneck', 'auxiliary_head.convs.0'),
    )
    for part in ('conv.weight', *(f'bn.{e}' for e in ('weight', 'bias', 'running_mean', 'running_var')))
]


@pytest.mark.parametrize('recipe', ['maskrcnn_1x', 'upernet_160k'])
def test_a_whole_model_of_the_elsa_authors_runs_in_our_config(recipe):
    library = 'mmdet' if recipe == 'maskrcnn_1x' else 'mmseg'
    pytest.importorskip(library)
    cfg = Config.fromfile(Path(__file__).parents[2] / 'configs' / f'elsa_swin_t_{recipe}.py')
    cfg.model.backbone.arch = SMALL[ELSASwin]
    if library == 'mmdet':
        cfg.model.neck.in_channels = [16, 32, 64, 128]
        expected = {f'{name}.{end}' for name in MMDET_2_HEADS for end in ('weight', 'bias')}
    else:
        cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = [16, 32, 64, 128], 64
        expected = set(MMSEG_0_HEADS)
    init_default_scope(library)
    source, target = (randomize(MODELS.build(cfg.model)) for _ in range(2))
    theirs = {f'backbone.{key}': value for key, value in authors_elsa(source.backbone.state_dict()).items()}
    heads = {key: value for key, value in source.state_dict().items() if not key.startswith('backbone.')}
    assert {key for key in heads if not key.endswith('num_batches_tracked')} == expected
    target.load_state_dict(theirs | heads)  # strict
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in target.state_dict().items())


def test_torchvisions_classifier_fills_swin():
    models = pytest.importorskip('torchvision.models.swin_transformer')
    torch.manual_seed(0)
    theirs = randomize(
        models.SwinTransformer(
            [4, 4], SWIN['embed_dims'], list(SWIN['depths']), list(SWIN['num_heads']), [7, 7], num_classes=9
        )
    ).eval()
    ours = small(SwinTransformer, shift_single_window=False)
    tensors, report = fit(theirs.state_dict(), ours.state_dict(), 'SwinTransformer', 'test')
    assert report.layout == 'torchvision'
    assert report.complete
    assert all(re.match(r'norm\d', key) for key in report.fresh)
    ours.load_state_dict(tensors, strict=False)
    for i in range(4):
        setattr(ours, f'norm{i}', nn.Identity())
    image = x = torch.randn(1, 3, 244, 228)  # maps larger than a window, padded in every stage
    maps = []
    with torch.no_grad():
        for i, module in enumerate(theirs.features):
            x = module(x)
            if i % 2:
                maps.append(x.permute(0, 3, 1, 2))
        for got, wanted in zip(ours(image), maps, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)  # sums in another order
