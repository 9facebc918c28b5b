"""The count of a training step's operators and bytes, on cases whose numbers are known, and its table in the docs."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dev import step_traffic
from dev.fake_cuda import fake_cuda
from dev.step_traffic import BEGIN, END, HEADER, SIZES, Counter, count
from mmext_backbones.backbones import MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.utils.cli import run_cli
from tests.test_backbones.test_contract import small
from tests.torch_features import needs_fake_backward

DOCS = Path(__file__).parents[2] / 'docs' / 'scaling.md'
pytestmark = needs_fake_backward


class Maps(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return [self.net(x)]


def test_a_linear_layer():
    """[8, 16] by [16, 32] in float16: two casts and the product; the gradient of the weight, and its cast."""
    found = count(Maps(nn.Linear(16, 32, bias=False)), [torch.zeros(8, 16)])
    x, w, y = 8 * 16, 16 * 32, 8 * 32
    casts = (4 + 2) * (x + w + w)  # of the map, of the weight, of its gradient
    products = 2 * ((x + w + y) + (y + x + w))
    assert found.moved == casts + products
    assert found.operators == 5
    assert found.kept == 2 * x
    assert found.operations == 2 * (8 * 16 * 32 * 2)


def test_views_are_nothing_and_sums_in_place_read_and_write():
    with fake_cuda(), Counter() as counter:
        x = torch.empty(6, 4, device='cuda')
        x.t().view(4, 2, 3).add_(1.0)
        x.new_empty(5)
        x.expand(7, 6, 4).sum()
    assert counter.operators == 2
    assert counter.moved == 2 * 4 * 24 + 4 * (24 + 1)


def test_an_lstm_is_one_operator_of_any_length():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(12, 5, bidirectional=True, batch_first=True)

        def forward(self, x):
            return [self.rnn(x)[0]]

    short, long = (count(Net(), [torch.zeros(2, length, 12)]).operators for length in (3, 300))
    assert short == long < 60


@pytest.mark.parametrize('cls', [SwinTransformer, MaxViT, Sequencer2D])
def test_recomputation_moves_more_and_keeps_less(cls):
    on, off = (count(small(cls, recompute=recompute), [torch.zeros(2, 3, 64, 96)]) for recompute in (True, False))
    assert on.moved > off.moved
    assert on.kept < 0.9 * off.kept


def test_the_table_of_the_docs_says_what_it_is_to_say():
    """Fewer bytes moved than by any peer without recomputation, fewer kept with it."""
    text = DOCS.read_text()
    table = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()
    assert table[:2] == HEADER.splitlines()
    by_network = {}
    for line in table[2:]:
        if line.startswith('|'):
            network, _, side, _, moved, kept, *_ = (cell.strip() for cell in line.strip('|').split('|'))
            by_network.setdefault(network, {})[side] = float(moved), float(kept)
    assert len(by_network) == len(SIZES)
    for sides in by_network.values():
        on, off = sides.pop('ours, recompute=True'), sides.pop('ours, recompute=False')
        assert sides
        assert off[0] < min(moved for moved, _ in sides.values())
        assert on[1] < min(kept for _, kept in sides.values())


@pytest.mark.slow
def test_the_command_prints_the_line_of_the_docs(capsys):
    assert run_cli(step_traffic.main, ['swin']) in (0, None)
    ours = capsys.readouterr().out.splitlines()[2]
    assert ours.startswith('| Swin | 2 x 800 x 1344 | ours, recompute=True |')
    assert ours in DOCS.read_text()


def test_a_network_that_is_none_is_named(capsys):
    with pytest.raises(SystemExit):
        step_traffic.main(['swim'])
    assert "no network 'swim': expected swin, elsa_swin, maxvit, sequencer" in capsys.readouterr().err
