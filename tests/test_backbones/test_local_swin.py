"""Every local mixer in Swin's frame: what the contract promises, sizes, costs, a step of training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict

from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.backbones import ELSASwin, LocalSwin, SwinTransformer
from mmext_backbones.backbones.local_mixers import MIXERS
from tests.test_backbones import test_contract as contract
from tests.test_backbones.test_contract import check_maps, image, loss
from tests.torch_features import HALF_AUTOCAST

ARCH = {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8)}
THIN = {**ARCH, 'depths': (2, 1, 1, 1)}  # with and without a shift, and each stage
each_mixer = pytest.mark.parametrize('mixer', MIXERS)
# one of each kind; the rest of the paper's tables are its terms in other sums
KINDS = ('swin', 'net4', 'net7-n', 'dwnet-dynamic', 'involution', 'ddf-add', 'elsa')
each_kind = pytest.mark.parametrize(
    'mixer', [pytest.param(mixer, marks=() if mixer in KINDS else pytest.mark.slow) for mixer in MIXERS]
)


@pytest.fixture
def of_mixer(monkeypatch):
    """A function that makes a class of one mixer, which the contract suite takes."""

    def make(mixer):
        class OfMixer(LocalSwin):
            def __init__(self, arch=THIN, **options):
                super().__init__(arch, mixer=mixer, **options)

        monkeypatch.setitem(contract.SMALL, OfMixer, THIN)
        return OfMixer

    return make


def build(mixer, arch=ARCH, **options):
    torch.manual_seed(0)
    return LocalSwin(arch, mixer=mixer, **options)


@each_mixer
def test_any_size(mixer):
    model = build(mixer, THIN).eval()
    assert model.out_strides == (4, 8, 16, 32)
    for size in [(64, 96), (65, 97), (1, 1), (31, 225)]:
        check_maps(model, *size)


@each_mixer
def test_a_step_of_training_lowers_the_loss(mixer):
    model = build(mixer, THIN, drop_path_rate=0.0).train()
    x, targets = image(40, 56, batch=2), [torch.randn_like(out) for out in model(image(40, 56, batch=2))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        total = sum((out - target).square().mean() for out, target in zip(model(x), targets, strict=True))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < losses[0]
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


@each_mixer
def test_one_pixel_trains(mixer):
    loss(build(mixer, THIN, drop_path_rate=0.0).train()(image(1, 1))).backward()


@each_kind
def test_the_contract(mixer, of_mixer):
    """What the suite asks of a backbone, as far as a mixer could break it."""
    cls = of_mixer(mixer)
    contract.test_every_parameter_gets_a_gradient(cls, (0, 3))
    contract.test_checkpointing_changes_neither_outputs_nor_gradients(cls, -1, True)
    contract.test_frozen_stages_stay_frozen_and_in_eval_mode(cls, 2)
    contract.test_memory_format_and_batch_do_not_matter(cls)
    contract.test_inference_mode_leaves_training_usable(cls)
    contract.test_an_empty_batch(cls)
    contract.test_hooks_run_for_every_module(cls)


@each_kind
@pytest.mark.parametrize('dtype', [torch.bfloat16, HALF_AUTOCAST])
def test_autocast_is_finite_and_close(mixer, dtype):
    """By running statistics: those of the few pixels of a small map would magnify each rounding."""
    model, x = build(mixer).eval(), image(64, 96, batch=2)
    exact = model(x)
    with torch.autocast('cpu', dtype=dtype):
        outs = model(x)
    loss([out.float() for out in outs]).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    for out, expected in zip(outs, exact, strict=True):
        error = (out.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < 8 * torch.finfo(dtype).eps  # roundings, as in the contract; the widest were 4.4 (involution)


@pytest.mark.slow
def test_the_whole_contract_of_the_default():
    """As of a backbone of elsewhere, by the suite's own option."""
    backbone = f'mmext_backbones.backbones.LocalSwin={json.dumps(ARCH)}'
    suite = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', contract.__file__, '--backbone', backbone]
    result = subprocess.run(suite, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]


def test_swin_and_elsa_are_the_backbones_of_their_names():
    x = image(45, 70)
    for ours, peer in (
        (build('swin').eval(), SwinTransformer(ARCH).eval()),
        (build('elsa').eval(), ELSASwin({**ARCH, 'group_width': 4}).eval()),
    ):
        peer.load_state_dict(ours.state_dict())
        with torch.no_grad():
            for out, expected in zip(ours(x), peer(x), strict=True):
                torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_swin_by_the_terms_of_equation_4():
    """`swin-n` has windows in its last stage, by other code than Swin's own."""
    torch.manual_seed(0)
    ours, swin = build('swin-n').eval(), build('swin').eval()
    for i in range(3):
        ours.stages[i] = swin.stages[i]
    for mine, theirs in zip(ours.stages[3].blocks, swin.stages[3].blocks, strict=True):
        weights = theirs.state_dict()
        key = 'attn.relative_position_bias_table'
        mine.load_state_dict(weights | {key: weights[key].flip(0).T})
    ours.load_state_dict({k: v for k, v in swin.state_dict().items() if not k.startswith('stages')}, strict=False)
    x = image(70, 300)
    with torch.no_grad():
        for out, expected in zip(ours(x), swin(x), strict=True):
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_heads():
    def heads(model):
        return [stage.blocks[0].attn.num_heads for stage in model.stages]

    assert heads(build('net7')) == [1, 2, 4, 8]
    assert heads(build('net7', heads='1')) == [1] * 4
    assert heads(build('net7-n', heads='2x')) == [2, 4, 8, 16]
    assert heads(build('net4', heads='C')) == heads(build('dwconv')) == [16, 32, 64, 128]
    assert heads(build('dwconv', heads='1x')) == [1, 2, 4, 8]


def test_regions_and_shifts():
    def regions(model):
        return [stage.blocks[1].attn.region for stage in model.stages]

    assert regions(build('net6')) == ['window'] * 4
    assert regions(build('net6-n')) == ['neighbourhood'] * 3 + ['window']
    assert regions(build('dwconv')) == ['neighbourhood'] * 4
    for shift in (True, False):
        for mixer in ('swin', 'net1'):
            shifts = [block.attn.shift_size for block in build(mixer, shift=shift).stages[0].blocks]
            assert shifts == [0, 3 if shift else 0]


def test_absolute_positions_are_added_where_they_are_learnt():
    with_positions, without = build('net1', absolute_position=True).eval(), build('net1').eval()
    table = with_positions.patch_embed.absolute_pos_embed
    assert table.shape == (1, 56, 56, 16)
    without.load_state_dict({k: v for k, v in with_positions.state_dict().items() if 'absolute' not in k})
    x = image(224, 224)
    with torch.no_grad():
        torch.testing.assert_close(with_positions.patch_embed(x), without.patch_embed(x) + table)
        table.zero_()
        for out, expected in zip(with_positions(x[..., :61, :83]), without(x[..., :61, :83]), strict=True):
            torch.testing.assert_close(out, expected)
    assert with_positions.get_layer_depth('patch_embed.absolute_pos_embed')[0] == 0
    check_maps(with_positions, 1, 1)


def test_normalizations():
    for normalization in ('filter', 'identity'):
        model = build('net7-n', normalization=normalization, drop_path_rate=0.0)
        assert {block.attn.normalization for stage in model.stages for block in stage.blocks} == {normalization}
        outs = model(image(33, 40))
        loss(outs).backward()
        assert all(out.isfinite().all() for out in outs)


# parameters of Swin-T with its dense norms; what a mixer has more or less, from the shapes
SWIN = 27_520_698
WIDTHS = [(96, 3, 2), (192, 6, 2), (384, 12, 6), (768, 24, 2)]  # channels, heads, blocks


def parameters(**options):
    with torch.device('meta'):
        return sum(p.numel() for p in LocalSwin(**options).parameters())


def over_blocks(number):
    return sum(depth * number(C, heads) for C, heads, depth in WIDTHS)


def test_parameters_follow_from_the_terms():
    assert parameters(mixer='swin') == SWIN
    assert parameters(mixer='net1') == SWIN - over_blocks(lambda C, heads: 169 * heads)
    # r^k and r^q: heads * 169 * 64 a block
    assert parameters(mixer='net7') == SWIN + over_blocks(lambda C, heads: heads * 169 * 64)
    without_q_and_k = SWIN - over_blocks(lambda C, heads: 2 * C * (C + 1))
    assert parameters(mixer='net4') == without_q_and_k
    assert parameters(mixer='dwconv') == without_q_and_k + over_blocks(lambda C, heads: 49 * C - 169 * heads)
    assert parameters(mixer='swin', absolute_position=True) == SWIN + 56 * 56 * 96
    assert parameters(mixer='elsa') == 28_373_322


def test_dwnet_is_of_the_published_size():
    """24 M (2106.04263) with 1000 classes; its attention of 51 M where the weights are dynamic."""
    classes = 769 * 1000
    assert round((parameters(mixer='dwnet') + classes) / 1e6) == 24
    assert round((parameters(mixer='dwnet-dynamic') + classes) / 1e6) == 51


@each_mixer
def test_everything_is_counted(mixer):
    cost = model_cost(build(mixer, THIN), (64, 64))
    assert not cost.not_counted
    assert cost.macs > 0


def test_its_own_checkpoint_is_loaded_whole(tmp_path):
    model, other = build('elsa-full'), build('elsa-full')
    for p in model.parameters():
        p.data.normal_()
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    assert other.load_pretrained(str(tmp_path / 'weights.pth')).complete
    torch.save({f'backbone.{key}': value for key, value in model.state_dict().items()}, tmp_path / 'detector.pth')
    assert other.load_pretrained(str(tmp_path / 'detector.pth'), prefix='backbone.').complete


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'mixer': 'net8'}, "mixer='net8': expected one of swin, net1, .*, dwnet-dynamic"),
        ({'mixer': None}, 'mixer=None: expected one of'),
        ({'mixer': ['net1']}, r"mixer=\['net1'\]: expected one of"),
        ({'heads': '3x'}, "heads='3x': expected one of 1, 1x, 2x, C, or None"),
        ({'heads': 1}, 'heads=1: expected one of'),
        ({'mixer': 'involution', 'heads': '2x'}, "heads='2x': expected None, since mixer='involution'"),
        ({'mixer': 'elsa', 'normalization': 'filter'}, "normalization='filter': expected None, since mixer='elsa'"),
        ({'normalization': 'l2'}, "normalization='l2': expected one of softmax, filter, identity, or None"),
        ({'heads': '2x', 'arch': {**ARCH, 'num_heads': (16, 2, 4, 8)}}, r"heads='2x': expected divisors"),
        ({'kernel_size': 4}, 'kernel_size=4: expected an odd number'),
        ({'kernel_size': 0}, 'kernel_size=0'),
        ({'window_size': 0}, 'window_size=0'),
        ({'shift': 'no'}, "shift='no': expected True or False"),
        ({'absolute_position': None}, 'absolute_position=None: expected True or False'),
        ({'shift_single_window': 3}, 'shift_single_window=3: expected True or False'),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LocalSwin(**({'arch': ARCH} | options))


def test_what_a_config_writes_is_taken():
    LocalSwin(ConfigDict({key: list(v) if isinstance(v, tuple) else v for key, v in ARCH.items()}), mixer='net1')
