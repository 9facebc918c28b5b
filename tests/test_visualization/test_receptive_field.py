"""The receptive fields have the shapes that the papers describe."""

import numpy as np
import pytest
import torch
from torch import nn

from mmext_backbones.backbones import DeiT, ELSASwin, LocalSwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.visualization.networks import ViewedBackbone
from mmext_backbones.visualization.receptive_field import draw_fields, extent, level_fields, level_panels, mixer_panels
from tests.conftest import randomize

from .test_attention import network

SIZE = 112  # 28 x 28 tokens of stride 4: four windows or grid cells of 7 along each axis


def noise(number=2, size=SIZE):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 3, size, size, generator=generator) for _ in range(number)]


def fields(cls):
    return {panel.title.partition(' (')[0]: panel.field for panel in mixer_panels(network(cls), noise(), 0)}


def square(size, first, last):
    mask = np.zeros((size, size), dtype=bool)
    mask[first:last, first:last] = True
    return mask


def test_bilstm2d_sees_its_row_and_column_and_nothing_else():
    field = fields(Sequencer2D)['BiLSTM2D']
    H, W = field.shape
    cross = np.zeros((H, W), dtype=bool)
    cross[H // 2] = cross[:, W // 2] = True
    assert np.array_equal(field != 0, cross)


def test_swin_sees_its_window_and_its_shifted_window():
    found = fields(SwinTransformer)
    # token 14 of 28 is the first of the third window; shifted by 3, windows start at 3, 10, 17
    assert np.array_equal(found['window'] != 0, square(28, 14, 21))
    assert np.array_equal(found['window shifted by 3'] != 0, square(28, 10, 17))


def test_elsa_sees_its_taps():
    assert np.array_equal(fields(ELSASwin)['ELSA 7 x 7'] != 0, square(28, 11, 18))


def test_maxvit_sees_its_window_and_its_grid():
    found = fields(MaxViT)
    assert np.array_equal(found['window'] != 0, square(28, 14, 21))
    # 7 x 7 cells of 4 tokens; token 14 is number 2 of its cell
    grid = np.zeros((28, 28), dtype=bool)
    grid[2::4, 2::4] = True
    assert np.array_equal(found['grid'] != 0, grid)


def test_the_mixers_of_the_study_are_drawn_too():
    def found(model):
        backbone = randomize(model).eval().requires_grad_(False)
        panels = mixer_panels(ViewedBackbone('of the study', backbone), noise(), 0)
        return {panel.title.partition(' (')[0]: panel.field for panel in panels}

    arch = {'embed_dims': 16, 'depths': (2, 1), 'num_heads': (2, 4)}
    fields = {name: found(LocalSwin(arch, mixer=name, out_indices=(0,))) for name in ('net7', 'involution', 'ddf-mul')}
    windows = {'window 7 x 7': square(28, 14, 21), 'window 7 x 7 shifted by 3': square(28, 10, 17)}
    assert fields['net7'].keys() == windows.keys()
    assert all(np.array_equal(field != 0, windows[name]) for name, field in fields['net7'].items())
    assert np.array_equal(fields['involution']['Involution'] != 0, square(28, 11, 18))
    assert fields['ddf-mul']['DecoupledDynamicFilter'].all()  # by the mean of the map
    deit = found(DeiT({'embed_dims': 24, 'depths': (1,), 'num_heads': (2,)}))
    assert deit['GhostAttention'].all()


def test_two_blocks_of_swin_see_the_windows_that_meet_the_shifted_one():
    (field, *_) = level_fields(network(SwinTransformer).backbone, noise())
    # the second block sees tokens 10 to 16, which lie in the windows 7 to 13 and 14 to 20; a token is 4 pixels
    assert np.array_equal(field != 0, square(SIZE, 7 * 4, 21 * 4))


def test_sequencer_is_a_cross_as_a_whole_and_the_others_are_not():
    crossness = {
        cls: level_panels(network(cls), noise())[0].extent.crossness for cls in (Sequencer2D, SwinTransformer, ELSASwin)
    }
    assert crossness[Sequencer2D] > 3  # many times as far along the axes as along the diagonals
    assert max(crossness[SwinTransformer], crossness[ELSASwin]) < 2


def test_a_convolution_has_its_kernel_for_a_field():
    """By hand: the unit in the middle of 8 x 8, (4, 4), reads pixels 3 to 5 through the kernel."""
    conv = nn.Conv2d(3, 2, 3, padding=1)
    with torch.no_grad():
        conv.bias.copy_(torch.tensor([100.0, -100.0]))  # the first channel is positive, the second is not
    one = nn.Sequential(conv)
    one.forward = lambda x: (conv(x),)
    (field,) = level_fields(one, noise(3, 8))
    wanted = np.zeros((8, 8))
    wanted[3:6, 3:6] = conv.weight[0].abs().sum(dim=0).detach()
    np.testing.assert_allclose(field, wanted, rtol=1e-6)


def test_the_mean_is_over_the_images():
    backbone, images = network(MaxViT).backbone, noise(3, 32)
    together = level_fields(backbone, images)
    alone = [level_fields(backbone, [image]) for image in images]
    for level, field in enumerate(together):
        np.testing.assert_allclose(field, np.mean([one[level] for one in alone], axis=0))


def test_the_sum_of_all_channels_would_not_do():
    """Behind a layer norm it hardly depends on the picture, the sum of the positive ones does."""
    backbone = network(SwinTransformer).backbone
    nn.init.ones_(backbone.norm0.weight)
    x = noise(1)[0].requires_grad_()
    (plain,) = torch.autograd.grad(backbone(x)[0][0, :, 14, 14].sum(), x)
    (field, *_) = level_fields(backbone, noise(1))
    assert plain.abs().sum() < 1e-4 * field.sum()


def test_extent_of_known_fields():
    size, middle = 40, (20.5, 20.5)
    everywhere = extent(np.ones((size, size)), middle)
    assert (everywhere.half, everywhere.most, everywhere.zero) == (0.5, 0.95, 0)
    block = np.zeros((size, size))
    block[18:23, 18:23] = 1
    found = extent(block, middle)
    assert (found.row, found.column, found.diagonal, found.crossness) == (5, 5, 5, 1)
    assert found.half == 13 / size**2
    assert found.most == 24 / size**2
    assert found.zero == 1 - 25 / size**2
    cross = np.zeros((size, size))
    cross[20] = cross[:, 20] = 1
    found = extent(cross, middle)
    assert (found.row, found.column, found.diagonal) == (size, size, 1)
    coarse = extent(np.kron(cross, np.ones((4, 4))), (82, 82), 4)  # the same, a token being 4 x 4 places
    assert (coarse.row, coarse.column, coarse.crossness > 20) == (4 * size, 4 * size, True)
    with pytest.raises(ValueError, match='does not depend on the input'):
        extent(np.zeros((4, 4)), (2.5, 2.5))


def test_the_figure_shows_the_field_and_marks_what_is_zero():
    panels = mixer_panels(network(Sequencer2D), noise(), 0)
    figure = draw_fields({'one': panels, 'two': panels * 2}, 'title', 'tokens')
    drawn = figure.axes[0].images[0].get_array()
    field = panels[0].field
    assert np.array_equal(np.ma.getmaskarray(drawn), field == 0)  # left open: the grey of the panel
    np.testing.assert_allclose(drawn.compressed(), np.maximum(field[field > 0] / field.max(), 1e-4))
    assert sum(bool(axes.images) for axes in figure.axes) == 3
