"""Feature maps and ELSA filters: what is drawn is what the network gives."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from mmext_backbones.backbones import ELSASwin, MaxViT, SwinTransformer
from mmext_backbones.utils.errors import UserError
from mmext_backbones.visualization.attention_maps import elsa_filters
from mmext_backbones.visualization.features import components, draw_features, levels_of
from mmext_backbones.visualization.filters import draw_filters
from mmext_backbones.visualization.networks import (
    MEAN,
    STD,
    ViewedBackbone,
    draw_shapes,
    load_network,
    read_picture,
    record,
    sort_files,
)

from .test_attention import network

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('cls', [SwinTransformer, MaxViT])
def test_levels_are_the_outputs_of_the_backbone(cls):
    one, picture = network(cls), draw_shapes(0, 50)
    levels = levels_of(one, picture)
    with torch.no_grad():
        outputs = one.backbone(one.prepare(picture))
    for i, (level, output) in enumerate(zip(levels, outputs, strict=True)):
        assert torch.equal(level.output, output[0])
        assert level.stride == one.backbone.out_strides[i]
        if cls is MaxViT:
            assert level.before is None
        else:
            normed = getattr(one.backbone, f'norm{i}')(level.before.permute(1, 2, 0)).permute(2, 0, 1)
            torch.testing.assert_close(normed, level.output)


def test_a_backbone_of_somebody_else_will_do():
    conv = nn.Conv2d(3, 8, 4, stride=4)
    conv.forward = lambda x: (nn.functional.conv2d(x, conv.weight, conv.bias, 4),)
    (level,) = levels_of(ViewedBackbone('conv', conv), draw_shapes(0, 48))
    assert level.name == 'stride 4, 12 x 12, 8 channels'
    assert level.before is None


def test_a_bare_backbone_gets_the_picture_as_imagenet_has_it():
    x = network(MaxViT).prepare(np.full((8, 9, 3), MEAN, np.float32) + np.array(STD, np.float32))
    torch.testing.assert_close(x, torch.ones(1, 3, 8, 9))


def test_components_find_the_patterns_of_a_map():
    """A map of two patterns in many channels: all its variance is in two components, each of one pattern."""
    left = torch.zeros(10, 12)
    left[:, :6] = 1
    top = torch.zeros(10, 12)
    top[:5] = 1
    directions = torch.linalg.qr(torch.randn(16, 2, generator=torch.Generator().manual_seed(0)))[0]
    level = 5 * directions[:, :1, None] * left + 2 * directions[:, 1:, None] * top + 7
    colours, share = components(level)
    assert share == pytest.approx(1)
    for component, pattern in enumerate((left, top)):
        drawn, pattern = colours[..., component], pattern.numpy()
        assert set(np.unique(drawn.round(6))) == {0, 1}
        assert abs(np.corrcoef(drawn.ravel(), pattern.ravel())[0, 1]) > 0.999
    assert (colours[..., 2] == 0.5).all()


def test_components_of_what_does_not_vary_are_grey():
    for level in (torch.ones(4, 3, 3), torch.zeros(4, 3, 3), torch.randn(2, 1, 1)):
        colours, share = components(level)
        assert (colours == 0.5).all()
        assert share == 0


def test_the_figure_holds_the_maps():
    one, picture = network(SwinTransformer), draw_shapes(0, 64)
    levels = levels_of(one, picture)
    figure = draw_features(one, picture, channels=2)
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    for level in levels:
        assert any(np.array_equal(values, level.before.pow(2).mean(dim=0).sqrt()) for values in drawn)
        assert any(np.array_equal(values, components(level.output)[0]) for values in drawn)
        varies = level.output.flatten(1).var(dim=1).argmax()
        assert any(np.array_equal(values, level.output[varies]) for values in drawn)
    titles = [axes.get_title() for axes in figure.axes]
    assert any(title.startswith('level 1: stride 8, 8 x 8, 32 channels') for title in titles)


def test_the_figure_holds_the_filters():
    one, picture = network(ELSASwin), draw_shapes(0, 64)
    figure = draw_filters(one, picture, 0, 0, [(2, 2), (40, 30)])
    (call,) = record(one.backbone, one.prepare(picture), [one.backbone.stages[0].blocks[0].attn])
    drawn = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    for token in ((0, 0), (7, 10)):
        A, S = elsa_filters(call, *token)
        for head in range(2):
            assert any(np.array_equal(values, A[head]) for values in drawn)
            mine = S[16 * head : 16 * (head + 1)]
            strongest = mine[mine.flatten(1).norm(dim=1).argmax()]
            assert any(np.array_equal(values, strongest) for values in drawn)
            assert any(np.allclose(values, mine.mean(dim=0), atol=1e-7) for values in drawn if values.shape == (7, 7))


def test_no_filters_without_elsa():
    with pytest.raises(UserError, match='SwinTransformer has no ELSA filters'):
        draw_filters(network(SwinTransformer), draw_shapes(0, 64), 0, 0, [(2, 2)])
    with pytest.raises(UserError, match='stage 1 of ELSASwin has no ELSA filters'):
        draw_filters(network(ELSASwin), draw_shapes(0, 64), 1, 0, [(2, 2)])


def test_a_config_brings_its_preprocessing_and_its_weights(tmp_path):
    pytest.importorskip('mmseg')
    config = str(ROOT / 'configs' / 'swin_t_upernet_160k.py')
    options = {'model.backbone.out_indices': (0,), 'model.decode_head.in_channels': [96],
               'model.decode_head.in_index': [0], 'model.auxiliary_head': None}  # fmt: skip
    one = load_network(config, None, options, seed=1)
    picture = draw_shapes(3, 60)
    with torch.no_grad():
        wanted = one.backbone(one.prepare(picture))[0]
    weights = {f'backbone.{key}': value for key, value in one.backbone.state_dict().items()}
    torch.save({'state_dict': weights, 'meta': {}}, tmp_path / 'iter_1.pth')

    bare = load_network('swin_t', str(tmp_path / 'iter_1.pth'), {'out_indices': (0,)}, seed=2)
    assert bare.name.endswith('iter_1.pth')
    (level,) = levels_of(bare, picture)
    # the config's mean and deviation are ImageNet's, too, and it turns the picture round to RGB
    torch.testing.assert_close(level.output, wanted[0][:, :15, :15], rtol=1e-4, atol=1e-4)


def test_a_detector_of_mmdet_will_do():
    pytest.importorskip('mmdet')
    one = load_network('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', None)
    assert not one.backbone.training
    levels = levels_of(one, draw_shapes(0, 64))
    assert [level.name for level in levels] == [
        f'stride {s}, {64 // s} x {64 // s}, {64 * s} channels' for s in (4, 8, 16, 32)
    ]
    with pytest.raises(UserError, match='ResNet is no backbone of this package'):
        draw_filters(one, draw_shapes(0, 64), 0, 0, [(2, 2)])


def test_a_classifier_has_the_preprocessing_that_stands_beside_its_model():
    pytest.importorskip('mmpretrain')
    one = load_network(str(ROOT / 'configs' / 'swin_t_in1k.py'), None)
    bare = ViewedBackbone('bare', one.backbone)
    torch.testing.assert_close(one.prepare(draw_shapes(0, 32)), bare.prepare(draw_shapes(0, 32)))


def test_pictures_are_read_as_rgb_and_brought_to_size(tmp_path):
    path = str(tmp_path / 'red.png')
    cv2.imwrite(path, np.full((20, 40, 3), (0, 0, 255), np.uint8))
    assert (read_picture(path) == (255, 0, 0)).all()
    assert read_picture(path, 10).shape == (5, 10, 3)
    assert read_picture(None, 48).shape == (48, 48, 3)
    (tmp_path / 'bad.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match=r'bad.png. cannot be read: it is damaged or no image'):
        read_picture(str(tmp_path / 'bad.png'))


def test_files_are_told_by_their_ends():
    assert sort_files([]) == (None, None)
    assert sort_files(['cat.JPG', 'timm://swin_tiny.ms_in1k']) == ('timm://swin_tiny.ms_in1k', 'cat.JPG')
