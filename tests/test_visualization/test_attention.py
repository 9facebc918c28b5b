"""The weights in the pictures are those of the network."""

import numpy as np
import pytest
import torch

from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.backbones.two_scales import TwoScaleBackbone
from mmext_backbones.layers import ELSAAttention, PartitionAttention, WindowAttention
from mmext_backbones.utils.errors import UserError
from mmext_backbones.visualization.attention import TOLERANCE, draw_attention
from mmext_backbones.visualization.attention_maps import ATTENTIONS, elsa_filters, token_attention
from mmext_backbones.visualization.networks import ViewedBackbone, draw_shapes, record
from tests.conftest import randomize
from tests.test_backbones.test_contract import small

VOLO_ARCH = {'embed_dims': (16, 32), 'depths': (1, 2), 'num_heads': (2, 2), 'mlp_ratio': 3, 'stem_dims': 8}
ARCHS = {
    SwinTransformer: {'embed_dims': 16, 'depths': (2, 1), 'num_heads': (2, 4)},
    ELSASwin: {'embed_dims': 32, 'depths': (1, 2), 'num_heads': (2, 4), 'group_width': 4},
    MaxViT: {'embed_dims': (64, 64), 'depths': (1, 1), 'stem_dims': 32},
    Sequencer2D: {'embed_dims': (16, 32), 'depths': (1, 1), 'hidden_dims': (4, 8)},
    VOLO: VOLO_ARCH,
    ELSAVOLO: {**VOLO_ARCH, 'kernel_size': 5, 'group_width': 8},
}
WITH_ATTENTION = (SwinTransformer, ELSASwin, MaxViT, VOLO, ELSAVOLO)
SIZES = {'whole': (56, 56), 'padded': (39, 70)}  # windows of 7 x 7 tokens divide the maps, or do not
UNIT = 1e-9  # float64, sums in another order


def network(cls):
    options = {} if issubclass(cls, TwoScaleBackbone) else {'out_indices': (0, 1)}
    options |= {'window_size': 3} if issubclass(cls, VOLO) else {}  # of all but the last block, which is global
    backbone = randomize(small(cls, ARCHS[cls], **options)).eval().requires_grad_(False)
    return ViewedBackbone(cls.__name__, backbone)


def modules_of(backbone):
    return [module for module in backbone.modules() if isinstance(module, ATTENTIONS)]


def calls_of(cls, size):
    backbone = network(cls).backbone.double()
    image = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return record(backbone, image, modules_of(backbone))


def tokens_of(call):
    """Corners, edges and the middle."""
    H, W = call.x.shape[1:3]
    return [(row, column) for row in {0, H // 2, H - 1} for column in {0, W // 3, W - 1}]


each_size = pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
each_class = pytest.mark.parametrize('cls', WITH_ATTENTION)


@each_size
@each_class
def test_weights_times_values_are_the_output_of_the_module(cls, size):
    for call in calls_of(cls, size):
        for token in tokens_of(call):
            assert token_attention(call, *token).error < UNIT


@each_size
@each_class
def test_the_weights_of_a_head_sum_to_one(cls, size):
    for call in calls_of(cls, size):
        for token in tokens_of(call):
            attention = token_attention(call, *token)
            torch.testing.assert_close(
                attention.weights.sum(dim=(1, 2)) + attention.beyond,
                torch.ones(call.module.num_heads, dtype=torch.float64),
            )
            hidden = attention.weights[:, ~attention.attended]
            assert hidden.numel() == 0 or hidden.max() < 1e-30  # exp(-100) in the regions of a shifted window


@each_size
@each_class
def test_a_token_attends_to_what_its_output_depends_on(cls, size):
    """By the gradient of the real module, which knows nothing of partitions and masks here."""
    for call in calls_of(cls, size):
        for row, column in tokens_of(call):
            x = call.x.clone().requires_grad_()
            y = call.module(x, *call.context)
            (gradient,) = torch.autograd.grad(y[0, row, column].square().sum(), x)
            depends = gradient[0].abs().sum(dim=-1) > 1e-30
            assert torch.equal(depends, token_attention(call, row, column).attended)


def test_padding_takes_part_in_swin_and_not_in_maxvit():
    swin, maxvit = (calls_of(cls, SIZES['padded'])[0] for cls in (SwinTransformer, MaxViT))
    corner = swin.x.shape[1] - 1, swin.x.shape[2] - 1
    assert token_attention(swin, *corner).beyond.min() > 0.01
    assert token_attention(maxvit, *corner).beyond.max() == 0


def test_elsa_filters_are_what_the_map_shows_around_the_token():
    call = calls_of(ELSASwin, SIZES['whole'])[0]
    assert isinstance(call.module, ELSAAttention)
    A, S = elsa_filters(call, 6, 7)
    attention = token_attention(call, 6, 7)
    torch.testing.assert_close(attention.weights[:, 3:10, 4:11], A)
    torch.testing.assert_close(A.sum(dim=(1, 2)), torch.ones(2, dtype=torch.float64))
    assert S is call.module.ghost_head
    assert not torch.allclose(A, elsa_filters(call, 7, 7)[0])


@pytest.mark.parametrize('kind', [WindowAttention, PartitionAttention, ELSAAttention])
def test_weights_that_are_not_the_modules_are_not_drawn(kind):
    """A change of every weight after the forward pass is a stand-in for any mistake in the formulas."""
    cls = {WindowAttention: SwinTransformer, PartitionAttention: MaxViT, ELSAAttention: ELSASwin}[kind]
    one = network(cls)
    module = next(module for module in one.backbone.modules() if isinstance(module, kind))
    name = 'ghost_head' if kind is ELSAAttention else 'relative_position_bias_table'

    def change(*_):
        getattr(module, name).data.mul_(2)

    module.register_forward_hook(change)
    with pytest.raises(RuntimeError, match='differ from the output of the module'):
        draw_attention(one, draw_shapes(0, 56), 0, 0, (20, 20))


@each_class
def test_the_picture_holds_the_weights(cls):
    one, picture = network(cls), draw_shapes(0, 56)
    figure = draw_attention(one, picture, 0, 0, (30, 22), heads=[1])
    calls = record(one.backbone, one.prepare(picture), modules_of(one.backbone.stages[0].blocks[0]))
    maps = [drawn for axes in figure.axes for drawn in (*axes.images[1:], *axes.collections)]
    drawn = [values for one_map in maps if (values := one_map.get_array()) is not None and values.dtype.kind == 'f']
    for call in calls:
        stride = one.backbone.stage_strides[0]
        attention = token_attention(call, 22 // stride, 30 // stride)
        assert attention.error < TOLERANCE
        for weights in (attention.weights.mean(dim=0), attention.weights[1]):
            wanted = weights[attention.attended].numpy()
            assert any(
                np.array_equal(np.ma.filled(values, np.nan)[~np.ma.getmaskarray(values)].ravel(), wanted)
                for values in drawn
            )


@pytest.mark.parametrize(
    ('cls', 'change', 'message'),
    [
        (Sequencer2D, {}, 'has no attention'),
        (SwinTransformer, {'stage': 2}, '--stage 2: expected 0 to 1'),
        (SwinTransformer, {'block': 2}, '--block 2: expected 0 to 1, the blocks of stage 0'),
        (SwinTransformer, {'point': (56, 0)}, '--point 56 0: expected a point of the picture, 0 <= X < 56'),
        (SwinTransformer, {'heads': [2]}, '--heads 2: expected 0 to 1'),
    ],
)
def test_mistakes_are_named(cls, change, message):
    options = {'stage': 0, 'block': 0, 'point': (3, 3), **change}
    with pytest.raises(UserError, match=message):
        draw_attention(network(cls), draw_shapes(0, 56), **options)
