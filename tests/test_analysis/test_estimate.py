"""Estimates against what autograd keeps of real numbers, and the table of the docs against the estimates."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mmext_backbones.analysis.estimate import activation_bytes, estimate
from mmext_backbones.analysis.estimate_table import BEGIN, END, HEADER, ROWS, replace_table, row
from mmext_backbones.backbones import Sequencer2D, recomputation
from mmext_backbones.layers import PartitionAttention, WindowAttention
from mmext_backbones.utils.errors import UserError
from tests.test_backbones.test_contract import SMALL, small
from tests.torch_features import needs_kernels

ROOT = Path(__file__).parents[2]
SIZE = (64, 96)


def kept_of_numbers(model):
    """Bytes that autograd keeps of a real forward pass on two images, without the weights."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outs = model.train()(torch.zeros(2, 3, *SIZE))
    del outs
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in weights)


@needs_kernels  # the estimate is of what the kernels keep
@pytest.mark.parametrize('cls', SMALL)
def test_activations_are_what_autograd_keeps(cls):
    # batch norms save scratch of their own beside what the shapes tell: a few numbers a channel; and where there are no
    # numbers, each attention makes the indices of its bias, which all share otherwise: 49 x 49 whole numbers
    expected = kept_of_numbers(model := small(cls, drop_path_rate=0.0))
    indices = 49**2 * 8 * sum(isinstance(module, (PartitionAttention, WindowAttention)) for module in model.modules())
    counted = activation_bytes(small(cls, drop_path_rate=0.0), 2, SIZE)
    assert counted - indices <= expected * 1.002
    assert counted >= expected * 0.998


@pytest.mark.parametrize(
    'cls', [pytest.param(cls, marks=() if cls is Sequencer2D else pytest.mark.slow) for cls in SMALL]
)
def test_settings_that_save(cls, monkeypatch):
    monkeypatch.setattr(recomputation, 'ON_CPU', -1)  # with any size of image, so that sizes can be compared
    whole, first, everything = (
        activation_bytes(small(cls, with_cp=with_cp, drop_path_rate=0.0), 2, SIZE) for with_cp in (False, (0,), True)
    )
    assert everything < first < whole
    # on larger images, where the activations outweigh the narrow copies of the weights
    wide, narrow = (activation_bytes(small(cls, drop_path_rate=0.0), 2, (512, 512), amp=amp) for amp in (False, True))
    assert 0.5 * wide < narrow < 0.8 * wide


def test_weights_gradients_and_state():
    model = nn.Conv2d(3, 10, 1, bias=False)  # 30 parameters of 4 bytes
    model.weight.in_channels = 3
    one = estimate(model, 1, (8, 8))
    assert (one.params, one.weights, one.gradients, one.optimizer) == (30, 120, 120, 240)
    assert one.macs == 3 * 30 * 64
    assert one.seconds(peak=2 * one.macs, utilisation=0.5) == 2.0
    several = estimate(model, 2, (8, 8), processes=4, optimizer='SGD')
    assert (several.weights, several.gradients, several.optimizer) == (120, 240, 120)
    assert several.macs == 2 * one.macs


def test_shards():
    model = small(next(iter(SMALL)), drop_path_rate=0.0)
    blocks = [sum(p.numel() for p in block.parameters()) for stage in model.stages for block in stage.blocks]
    total = sum(p.numel() for p in model.parameters())
    sharded = estimate(model, 1, SIZE, strategy='fsdp', processes=8)
    assert sharded.optimizer == total
    assert sharded.weights == 4 * (total / 8 + total - sum(blocks) + 2 * max(blocks))


def test_recomputing_is_work():
    cls = next(iter(SMALL))
    plain, recomputed = (estimate(small(cls, with_cp=with_cp), 1, SIZE).macs for with_cp in (False, True))
    assert plain < recomputed < 4 / 3 * plain


@pytest.mark.parametrize('options', [{'optimizer': 'LAMB'}, {'strategy': 'pipeline'}, {'processes': 0}])
def test_bad_arguments_are_named(options):
    with pytest.raises(ValueError, match=f'{next(iter(options))}='):
        estimate(nn.Conv2d(3, 10, 1), 1, (8, 8), **options)


def test_docs_have_every_row():
    table = (ROOT / 'docs' / 'scaling.md').read_text().partition(BEGIN)[2].partition(END)[0].strip()
    header, _, lines = table.partition('|---:|\n')
    assert f'{header}|---:|' == HEADER
    assert [line.split(' | ')[2] for line in lines.splitlines()] == [recipe.settings for recipe in ROWS]


@needs_kernels
@pytest.mark.parametrize(
    'recipe', [pytest.param(ROWS[4], marks=pytest.mark.slow), ROWS[-1]], ids=lambda recipe: Path(recipe.config).stem
)
def test_docs_are_current(recipe, monkeypatch):
    pytest.importorskip('mmdet' if 'maskrcnn' in recipe.config else 'mmpretrain')
    monkeypatch.chdir(ROOT)
    assert row(recipe) in (ROOT / 'docs' / 'scaling.md').read_text().splitlines()


def test_a_page_without_marks():
    with pytest.raises(UserError, match='no marks'):
        replace_table('# Nothing', 'new')
