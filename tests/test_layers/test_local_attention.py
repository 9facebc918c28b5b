"""The study's local attention: equation 4 by plain loops, and what it is where terms are left out."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.layers import LocalAttention, WindowAttention
from mmext_backbones.layers.local_attention import TERMS
from tests.conftest import randomize
from tests.vectors import DATA, relative_error

VECTORS = np.load(DATA / 'local_filter.npz')
NAMES = {'qk': 'q.k', 'qr': 'q.r', 'rk': 'r.k', 'b': 'b'}
NETS = {net: tuple(NAMES[term] for term in terms) for net, terms in json.loads(str(VECTORS['terms'])).items()}
CASES = [key for key in VECTORS.files if key.startswith(('neighbour.', 'window.'))]


def tensor(name):
    return torch.from_numpy(VECTORS[name])


@pytest.mark.parametrize('case', CASES)
def test_agrees_with_plain_loops(case):
    region, net, normalization = case.split('.')
    terms = NETS[net]
    mixer = LocalAttention(
        4, 2, terms, normalization=normalization, region={'neighbour': 'neighbourhood'}.get(region, region), size=3
    ).double()
    mixer.scale = float(VECTORS['scale'])
    for attribute, name in (
        ('relative_keys', 'rk'),
        ('relative_queries', 'rq'),
        ('relative_position_bias_table', 'rb'),
    ):
        if getattr(mixer, attribute) is not None:
            getattr(mixer, attribute).data = tensor(f'{name}_{region}')
    # the vectors have heads wider in q and k than in v: `split` is where they would come from
    parts = tuple(tensor(name)[None] if name == 'v' or has else None for name, has in (
        ('q', mixer.has_q), ('k', mixer.has_k), ('v', True)
    ))  # fmt: skip
    if region == 'neighbour':
        mixer.split = lambda x: parts
        out = mixer.attend(torch.zeros(1, 6, 6, 0, dtype=torch.float64))
    else:

        def in_windows(x):  # [1, 6, 6, heads, d] -> [1, windows, N, heads, d]
            return x.view(1, 2, 3, 2, 3, *x.shape[3:]).transpose(2, 3).reshape(1, 4, 9, *x.shape[3:])

        mixer.split = lambda x: tuple(None if part is None else in_windows(part) for part in parts)
        out = mixer.attend(torch.zeros(1, 6, 6, mixer.qkv.out_features, dtype=torch.float64))
    assert relative_error(out.view(6, 6, 2, 2), tensor(case)) <= 1e-12


@pytest.mark.parametrize('size', [(13, 9), (5, 4), (1, 1)])
@pytest.mark.parametrize('shift_size', [0, 2])
def test_net1_with_a_bias_in_windows_is_swins_attention(size, shift_size):
    torch.manual_seed(0)
    swin = randomize(WindowAttention(12, 3, 4, shift_size=shift_size)).double()
    ours = LocalAttention(12, 3, ('q.k', 'b'), size=4, shift_size=shift_size).double()
    weights = swin.state_dict()
    # Swin's offsets are query minus key, one row an offset
    weights['relative_position_bias_table'] = weights['relative_position_bias_table'].flip(0).T
    ours.load_state_dict(weights)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    torch.testing.assert_close(ours(x), swin(x), rtol=1e-12, atol=1e-12)


def test_a_mirrored_table_is_another_layer():
    """What the comparison above would miss if the table had no say."""
    torch.manual_seed(0)
    layer = LocalAttention(12, 3, ('q.k', 'b'), size=4).double()
    layer.relative_position_bias_table.data.normal_()
    x = torch.randn(1, 8, 8, 12, dtype=torch.float64)
    expected = layer(x)
    layer.relative_position_bias_table.data = layer.relative_position_bias_table.flip(1)
    assert relative_error(layer(x), expected) > 1e-2


def test_net4_over_neighbours_with_a_head_a_channel_is_a_depthwise_convolution():
    torch.manual_seed(0)
    mixer = randomize(LocalAttention(6, 6, ('b',), normalization='identity', region='neighbourhood', size=5)).double()
    x = torch.randn(2, 7, 4, 6, dtype=torch.float64)
    weight = mixer.relative_position_bias_table.view(6, 1, 5, 5)
    values = F.linear(x, mixer.qkv.weight, mixer.qkv.bias).permute(0, 3, 1, 2)
    convolved = F.conv2d(values, weight, padding=2, groups=6).permute(0, 2, 3, 1)
    torch.testing.assert_close(mixer(x), mixer.proj(convolved), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('normalization', ['softmax', 'filter', 'identity'])
def test_static_filters_are_those_of_net7_without_queries_and_keys(normalization):
    """The convolution against the operator with a filter a pixel; the window's static weights likewise."""
    torch.manual_seed(0)
    for options in ({'region': 'neighbourhood', 'size': 3}, {'size': 4, 'shift_size': 2}):
        static = LocalAttention(8, 2, ('b',), normalization=normalization, **options).double()
        static.relative_position_bias_table.data.normal_()
        whole = LocalAttention(8, 2, normalization=normalization, **options).double()
        with torch.no_grad():
            whole.qkv.weight[:16] = 0  # no queries, no keys
            whole.qkv.weight[16:] = static.qkv.weight
            whole.relative_position_bias_table.copy_(static.relative_position_bias_table)
            whole.proj.load_state_dict(static.proj.state_dict())
        x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
        torch.testing.assert_close(static(x), whole(x), rtol=1e-11, atol=1e-11)


def test_a_window_as_large_as_the_map_is_global_attention():
    torch.manual_seed(0)
    mixer = LocalAttention(8, 2, ('q.k',), size=5).double()
    x = torch.randn(2, 5, 5, 8, dtype=torch.float64)
    q, k, v = mixer.qkv(x).flatten(1, 2).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    expected = mixer.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 5, 8))
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize('normalization', ['filter', 'identity'])
def test_what_only_the_shift_brought_together_has_no_weight(normalization):
    torch.manual_seed(0)
    mixer = LocalAttention(8, 2, ('b',), normalization=normalization, size=4, shift_size=2).double()
    x = torch.randn(1, 8, 8, 8, dtype=torch.float64, requires_grad=True)
    mixer(x)[0, 0, 0].sum().backward()  # its window holds rows and columns 0, 1, and by the roll 6, 7
    seen = x.grad[0].abs().sum(-1) > 0
    assert seen[:2, :2].all()
    assert seen.sum() == 4


@pytest.mark.parametrize('region', ['window', 'neighbourhood'])
@pytest.mark.parametrize('term', TERMS)
def test_only_what_a_term_reads_is_there(region, term):
    mixer = LocalAttention(8, 2, (term,), region=region, size=3)
    parts = 1 + ('q' in term) + ('k' in term)
    assert mixer.qkv.out_features == 8 * parts
    offsets = 25 if region == 'window' else 9
    tables = {'q.r': ('relative_keys', (2, offsets, 4)), 'r.k': ('relative_queries', (2, offsets, 4))}
    tables |= {'b': ('relative_position_bias_table', (2, offsets)), 'q.k': None}
    expected = {} if tables[term] is None else dict([tables[term]])
    assert {name: tuple(p.shape) for name, p in mixer.named_parameters() if 'relative' in name} == expected


def test_products_cost_as_much_over_neighbours_as_in_windows():
    """49 keys a token in both; the projections beside them."""
    x = torch.empty(1, 14, 14, 16, device='meta')
    costs = [model_cost(LocalAttention(16, 2, ('q.k',), region=region), x) for region in ('window', 'neighbourhood')]
    assert [cost.macs for cost in costs] == [14 * 14 * (4 * 16**2 + 2 * 49 * 16)] * 2
    static = model_cost(LocalAttention(16, 16, ('b',), region='neighbourhood'), x)
    assert static.macs == 14 * 14 * (2 * 16**2 + 49 * 16)
    for region in ('window', 'neighbourhood'):
        for term in ('q.r', 'r.k'):
            cost = model_cost(LocalAttention(16, 2, (term,), region=region), x)
            assert cost.macs == 14 * 14 * (3 * 16**2 + 2 * 49 * 16)
            assert not cost.not_counted


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'terms': ()}, r'terms=\(\): expected some of q.k, q.r, r.k, b'),
        ({'terms': ('k.q',)}, r"terms=\('k.q',\)"),
        ({'normalization': 'l2'}, "normalization='l2': expected one of softmax, filter, identity"),
        ({'region': 'grid'}, "region='grid': expected one of window, neighbourhood"),
        ({'region': 'neighbourhood', 'size': 4}, 'size=4: expected an odd number'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LocalAttention(8, 2, **options)
