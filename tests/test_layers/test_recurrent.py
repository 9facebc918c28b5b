"""The variants of Sequencer's mixer: equalities between them, with nn.LSTM, and with the fast operator."""

import pytest
import torch
from torch import nn

from mmext_backbones.layers import BiLSTM2D, Recurrent2D, RecurrentSequence
from mmext_backbones.layers.recurrent import CELLS, UNIONS

C, D = 12, 4


def mixer(hidden_dims=D, **options):
    torch.manual_seed(0)
    return Recurrent2D(C, hidden_dims, **options).double()


def tokens(*size):
    return torch.randn(2, *size, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_published_form_is_the_fast_one():
    """Two implementations of one mixer, in values and all gradients."""
    other = mixer()
    fast = BiLSTM2D(C, D).double()
    fast.load_state_dict(other.state_dict())
    found = []
    for module in (fast, other):
        x = tokens(5, 7).requires_grad_()
        out = module(x)
        out.square().sum().backward()
        found.append([out, x.grad, *(p.grad for p in module.parameters())])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_a_sum_with_a_projection_is_the_axes_side_by_side_with_a_tied_one():
    added, joined = mixer(union='add'), mixer()
    weights = added.state_dict()
    joined.load_state_dict(weights | {'proj.weight': torch.cat([weights['proj.weight']] * 2, dim=1)})
    x = tokens(5, 7)
    torch.testing.assert_close(added(x), joined(x))


@pytest.mark.parametrize('cell', CELLS)
def test_columns_are_rows_of_the_transposed_map(cell):
    vertical, horizontal = (mixer(union=union, cell=cell) for union in ('vertical', 'horizontal'))
    weights = {key.replace('rnn_v', 'rnn_h'): value for key, value in vertical.state_dict().items()}
    horizontal.load_state_dict(weights)
    x = tokens(5, 7)
    torch.testing.assert_close(vertical(x), horizontal(x.transpose(1, 2)).transpose(1, 2))


@pytest.mark.parametrize('cell', CELLS)
def test_one_sense_is_both_with_the_other_half_of_the_projection_zero(cell):
    one, both = mixer(bidirectional=False, cell=cell), mixer(cell=cell)
    weights = both.state_dict() | {k: v for k, v in one.state_dict().items() if not k.startswith('proj')}
    half = one.proj.weight.unflatten(1, (2, D))  # downwards, rightwards
    weights['proj.weight'] = torch.stack((half, torch.zeros_like(half)), dim=2).flatten(1)
    weights['proj.bias'] = one.proj.bias
    both.load_state_dict(weights)
    x = tokens(5, 7)
    torch.testing.assert_close(one(x), both(x))


def test_without_a_projection_it_is_the_identity():
    bare, whole = mixer(C // 4, projection=False), mixer(C // 4)
    whole.load_state_dict(bare.state_dict() | {'proj.weight': torch.eye(C), 'proj.bias': torch.zeros(C)})
    x = tokens(5, 7)
    torch.testing.assert_close(bare(x), whole(x))


def test_the_vanilla_mixer_on_one_row_is_nn_lstm():
    torch.manual_seed(0)
    vanilla = RecurrentSequence(C).double()
    lstm = nn.LSTM(C, C // 2, bidirectional=True, batch_first=True).double()
    lstm.load_state_dict({key.removeprefix('rnn.'): value for key, value in vanilla.state_dict().items()})
    row = tokens(1, 9)
    assert torch.equal(vanilla(row)[:, 0], lstm(row[:, 0])[0])
    rows = tokens(3, 4)  # the last token of a row is followed by the first of the next
    assert torch.equal(vanilla(rows).flatten(1, 2), lstm(rows.flatten(1, 2))[0])


def test_the_vanilla_mixer_on_one_row_is_the_horizontal_one():
    torch.manual_seed(0)
    vanilla = RecurrentSequence(C).double()
    horizontal = mixer(C // 2, union='horizontal', projection=False)
    horizontal.load_state_dict({key.replace('rnn.', 'rnn_h.'): x for key, x in vanilla.state_dict().items()})
    row = tokens(1, 9)
    torch.testing.assert_close(vanilla(row), horizontal(row))


@pytest.mark.parametrize('union', UNIONS)
def test_a_missing_axis_has_no_parameters(union):
    names = {key.partition('.')[0] for key in mixer(union=union).state_dict()}
    assert names == {'proj', *{'vertical': ['rnn_v'], 'horizontal': ['rnn_h']}.get(union, ['rnn_v', 'rnn_h'])}
    assert not [key for key in mixer(union=union, bidirectional=False).state_dict() if 'reverse' in key]


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_under_autocast_the_recurrence_is_in_single_precision(cell, dtype):
    module = mixer(cell=cell).float()
    x = tokens(3, 4).float().requires_grad_()
    expected = module(x)
    with torch.autocast('cpu', dtype=dtype):
        out = module(x)
    out.float().sum().backward()
    assert x.grad.isfinite().all()
    assert (out.float() - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()


def test_an_empty_batch_and_one_token():
    module = mixer().float()
    assert module(torch.zeros(0, 3, 4, C)).shape == (0, 3, 4, C)
    assert module(torch.zeros(2, 1, 1, C)).shape == (2, 1, 1, C)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'cell': 'qrnn'}, "cell='qrnn': expected one of lstm, gru, rnn"),
        ({'union': 'mul'}, "union='mul': expected one of cat, add, vertical, horizontal"),
        ({'projection': False}, 'projection=False: .* 12 channels; hidden_dims=4 make 16'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Recurrent2D(C, D, **options)
