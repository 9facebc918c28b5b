"""Costs against formulas written by hand, against PyTorch's own counter, and against what was published."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmext_backbones.analysis.cost import ATTENTION, FORMULAS, PRODUCTS, cost_table, model_cost
from mmext_backbones.backbones import ELSAVOLO, VOLO, ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from mmext_backbones.layers import BiLSTM2D, ELSAAttention, WindowAttention
from mmext_backbones.utils.errors import UserError
from mmext_backbones.zoo import backbone_names, build_network

ROOT = Path(__file__).parents[2]
VOLO_ARCH = {
    'embed_dims': (16, 32, 32, 32),
    'depths': (2, 2, 2, 2),
    'num_heads': (1, 2, 2, 2),
    'mlp_ratio': 3,
    'stem_dims': 8,
}
CONFIGS = ROOT / 'configs'
SMALL = {
    SwinTransformer: {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8)},
    ELSASwin: {'embed_dims': 16, 'depths': (2, 2, 2, 2), 'num_heads': (1, 2, 4, 8), 'group_width': 4},
    MaxViT: {'embed_dims': (32, 64, 64, 96), 'depths': (2, 2, 2, 2), 'stem_dims': 32},
    Sequencer2D: {'embed_dims': (16, 32, 32, 32), 'depths': (2, 2, 2, 2), 'hidden_dims': (4, 8, 8, 8)},
    VOLO: VOLO_ARCH,
    ELSAVOLO: {**VOLO_ARCH, 'kernel_size': 5, 'group_width': 8},
}


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device='meta')


# --------------------------------------------------------------------------------------------------------------------
# By hand


def test_convolutions_and_linear_layers():
    model = nn.Sequential(
        nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2),  # 6 x 10 x 14 -> 8 x 5 x 7
        nn.ConvTranspose2d(8, 4, 2, stride=2),  # -> 4 x 10 x 14
        nn.Flatten(),
        nn.Linear(4 * 10 * 14, 5),
    )
    cost = model_cost(model, empty(3, 6, 10, 14))
    macs = [part.macs for part in cost.parts.values()]
    assert list(cost.parts) == ['0', '1', '3']
    assert macs == [3 * 5 * 7 * 8 * 3 * 9, 3 * 5 * 7 * 8 * 4 * 4, 3 * 560 * 5]
    assert [part.activations for part in cost.parts.values()] == [3 * 8 * 35, 3 * 4 * 140, 3 * 5]
    assert [part.params for part in cost.parts.values()] == [8 * 3 * 9 + 8, 8 * 4 * 4 + 4, 560 * 5 + 5]
    assert cost.macs_by_operator == {'convolution': macs[0] + macs[1], 'linear': macs[2]}
    assert (cost.macs, cost.params) == (sum(macs), sum(p.numel() for p in model.parameters()))


def test_window_attention():
    """Both products are of whole windows, the projections of the map alone."""
    C, N = 12, 16
    cost = model_cost(WindowAttention(C, 3, window_size=4, shift_size=2), empty(2, 10, 9, C))
    windows = 2 * 3 * 3  # 10 x 9 is padded to 12 x 12
    linear = 2 * 90 * 4 * C * C
    assert cost.macs_by_operator == {'linear': linear, 'product': windows * 2 * N * N * C}
    assert cost.activations == windows * 3 * N * N + 2 * 90 * (3 * C + C + C)


def test_lstm():
    """4 * h * (in + h) MACs a step, direction and sequence."""
    C, h = 10, 3
    cost = model_cost(BiLSTM2D(C, h), empty(2, 5, 7, C))
    one_direction = 2 * 5 * 7 * 4 * h * (C + h)
    assert cost.macs_by_operator == {'recurrent': 4 * one_direction, 'linear': 2 * 35 * 4 * h * C}
    assert cost.activations == 2 * 35 * (4 * h + C)


class Last(nn.Module):
    """The outputs of a recurrent layer without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


@pytest.mark.parametrize(('layer', 'gates'), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers(layer, gates):
    model = Last(layer(5, 6, num_layers=2, bidirectional=True, batch_first=True))
    cost = model_cost(model, empty(3, 11, 5))
    a_step = 2 * gates * 6 * (5 + 6) + 2 * gates * 6 * (12 + 6)
    assert cost.macs == 3 * 11 * a_step
    assert cost.activations == 3 * 11 * 12


def test_elsa():
    """k * k * C a pixel for the dynamic filters, and again for the static ones."""
    C, heads, d = 24, 3, 16
    cost = model_cost(ELSAAttention(C, heads, kernel_size=5, group_width=4), empty(2, 6, 7, C))
    pixels = 2 * 6 * 7
    linear = C * (2 * d + C) + d * 25 * heads + C * C
    assert cost.macs_by_operator == {
        'linear': pixels * linear,
        'convolution': pixels * d * 4 * 25,
        'elsa': pixels * 2 * 25 * C,
    }


def test_elsa_of_the_published_network():
    cost = model_cost(build_network('elsa_swin_t'), (224, 224))
    layers = {0: (2, 96, 56), 1: (2, 192, 28), 2: (6, 384, 14)}
    for stage, (depth, C, edge) in layers.items():
        assert cost.parts[f'stages.{stage}'].macs_by_operator['elsa'] == depth * 2 * 49 * C * edge**2
    assert 'elsa' not in cost.parts['stages.3'].macs_by_operator


# --------------------------------------------------------------------------------------------------------------------
# Whatever runs


class Attention(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        q, k, v = x.split((6, 6, 4), dim=-1)  # [B, heads, N, d]
        if self.how == 'fused':
            return F.scaled_dot_product_attention(q, k, v)
        if self.how == 'einsum':
            return torch.einsum('bhnm,bhmd->bhnd', torch.einsum('bhnd,bhmd->bhnm', q, k).softmax(-1), v)
        return (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize('how', ['fused', 'products', 'einsum'])
def test_attention_costs_the_same_however_it_is_written(how):
    cost = model_cost(Attention(how), empty(2, 3, 9, 16))
    assert cost.macs_by_operator == {'product': 2 * 3 * 9 * 9 * (6 + 4)}
    assert cost.activations == 2 * 3 * (9 * 9 + 9 * 4)


def test_fused_kernels_of_all_devices_share_the_formula():
    fused = {f'aten::{name}' for name in dir(torch.ops.aten) if 'scaled_dot_product' in name and 'attention' in name}
    forward = {name for name in fused if 'backward' not in name}
    missed = {name for name in forward - set(ATTENTION) if not PRODUCTS.search(name.partition('::')[2])}
    assert not missed
    assert set(ATTENTION) <= set(FORMULAS)


@pytest.mark.parametrize('backend', ['taps', 'reference', 'compiled', 'triton'])
def test_elsa_costs_the_same_whichever_backend_is_asked_for(backend, monkeypatch):
    model = ELSASwin(SMALL[ELSASwin])
    expected = model_cost(model, (64, 96))
    monkeypatch.setenv('MMEXT_ELSA_BACKEND', backend)
    assert model_cost(model, (64, 96)) == expected
    monkeypatch.delenv('MMEXT_ELSA_BACKEND')
    for module in model.modules():
        if isinstance(module, ELSAAttention):
            module.backend = backend
    assert model_cost(model, (64, 96)) == expected


@pytest.mark.parametrize('backend', ['torch', 'reference', 'compiled', 'triton'])
def test_windows_cost_the_same_whichever_backend_is_asked_for(backend):
    attention = WindowAttention(12, 3, window_size=4, shift_size=2)
    expected = model_cost(attention, empty(2, 10, 9, 12))
    attention.backend = backend
    assert model_cost(attention, empty(2, 10, 9, 12)) == expected


@pytest.mark.parametrize('cls', SMALL)
def test_agrees_with_the_counter_of_pytorch(cls):
    """It counts the operators that are left when LSTMs and the like are taken apart, two FLOPs a MAC.

    It does not know ours.
    """
    model = cls(SMALL[cls]).to('meta').eval()

    def windows(qkv, bias, padding, num_heads, window_size, *_, out_val, **__):
        B, H, W, C = out_val.shape
        h, w = window_size
        return 4 * B * math.ceil(H / h) * math.ceil(W / w) * (h * w) ** 2 * C

    own = {
        torch.ops.mmext_backbones.window_attention: windows,
        torch.ops.mmext_backbones.elsa: lambda v, attn, add, k, **__: 4 * k * k * v.numel(),
        torch.ops.mmext_backbones.outlook: lambda v, attn, k, *_, **__: 2 * attn.shape[:3].numel() * k**4 * v.shape[3],
        torch.ops.mmext_backbones.bilstm2d: lambda x, w, **_: (
            2 * x.shape[:3].numel() * sum(m.numel() for m in w if m.dim() == 2)
        ),
    }
    for formula in own.values():
        formula._get_raw = True
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=own) as counter:
        model(empty(2, 3, 65, 97))
    assert 2 * model_cost(model, empty(2, 3, 65, 97)).macs == counter.get_total_flops()


def test_the_model_stays_as_it_is():
    model = SwinTransformer(SMALL[SwinTransformer]).train()
    before = {name: (p, p.data_ptr()) for name, p in model.named_parameters()}
    model_cost(model, (64, 64))
    assert model.training
    assert all(p is before[name][0] and p.data_ptr() == before[name][1] for name, p in model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model(torch.zeros(1, 3, 32, 32))[0].device.type == 'cpu'


def test_size_and_batch():
    model = SwinTransformer(SMALL[SwinTransformer], in_channels=4)
    one, two = model_cost(model, (56, 56)), model_cost(model, empty(2, 4, 56, 56))
    assert one.input_shape == (1, 4, 56, 56)
    assert (two.macs, two.activations, two.params) == (2 * one.macs, 2 * one.activations, one.params)


# --------------------------------------------------------------------------------------------------------------------
# What is left out is said


def test_unknown_operators_are_reported():
    library = torch.library.Library('cost_test', 'FRAGMENT')
    library.define('mystery(Tensor x) -> Tensor')
    library.impl('mystery', lambda x: x.clone(), 'CompositeExplicitAutograd')

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(4, 4, 4)

        def forward(self, x):
            x = torch.ops.cost_test.mystery(torch.ops.cost_test.mystery(x))
            return self.bilinear(x, x).sigmoid()

    cost = model_cost(Model(), empty(2, 4))
    assert cost.not_counted == {'cost_test::mystery': 2, 'aten::_trilinear': 1}
    assert 'cost_test::mystery (2 calls)' in cost_table(cost)[-1]


@pytest.mark.parametrize(
    'name',
    [
        *('_int_mm', '_scaled_mm', '_weight_int4pack_mm', '_sparse_addmm', 'cudnn_convolution', '_slow_conv2d_forward'),
        *('convolution_overrideable', 'conv_depthwise3d', '_cudnn_rnn', 'mkldnn_rnn_layer', '_thnn_fused_gru_cell'),
        *('mkldnn_linear', '_flash_attention_forward', '_native_multi_head_attention', '_cdist_forward', 'addr'),
        *('linalg_solve_ex', '_fft_r2c', '_trilinear', '_transformer_encoder_layer_fwd', 'miopen_rnn'),
    ],
)
def test_what_looks_like_a_product(name):
    assert hasattr(torch.ops.aten, name)
    assert PRODUCTS.search(name)


@pytest.mark.parametrize(
    'name',
    ['upsample_bilinear2d', 'upsample_linear1d', 'digamma', 'linalg_vector_norm', 'native_layer_norm', 'mul', 'gelu'],
)
def test_what_does_not(name):
    assert hasattr(torch.ops.aten, name)
    assert not PRODUCTS.search(name)


def test_modules_that_do_not_run_are_reported():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))
            self.both = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
            self.act = nn.ReLU()

        def forward(self, x):
            return self.both[0](self.used(x))

    cost = model_cost(Model(), empty(2, 4))
    assert cost.not_run == ('unused', 'both.1')
    assert cost.params == 80
    assert any('unused, both.1' in line for line in cost_table(cost))


@pytest.mark.parametrize('size', [(0, 32), (32, -1), (32,)])
def test_size_that_cannot_be(size):
    with pytest.raises(ValueError, match='positive height and width'):
        model_cost(SwinTransformer(SMALL[SwinTransformer]), size)


def test_model_that_needs_numbers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Last(nn.Identity())
            self.inner.forward = lambda x: x * x.sum().item()

        def forward(self, x):
            return self.inner(x)

    with pytest.raises(RuntimeError, match=r'Model cannot be counted: inner does not run.*(item|_local_scalar_dense)'):
        model_cost(Model(), empty(2, 4))


# --------------------------------------------------------------------------------------------------------------------
# Published numbers, in G

TOLERANCE = 0.02  # a backbone less its norms, activation functions and biases, and a rounded number
DENSE = {  # of the authors' repositories, 800 x 1280 and 512 x 2048
    'maskrcnn_3x': {'swin_t': 267, 'swin_s': 359},
    'cascade_3x': {'swin_t': 745, 'swin_s': 838, 'swin_b': 982},
    'upernet_160k': {'swin_t': 945, 'swin_s': 1038, 'swin_b': 1188},
}
CLASSIFIERS = {
    **{'swin_t': 4.5, 'swin_s': 8.7, 'swin_b': 15.4},
    **{'maxvit_t': 5.6, 'maxvit_s': 11.7, 'maxvit_b': 24.2, 'maxvit_l': 43.9},
    **{'sequencer_s': 8.4, 'sequencer_m': 11.1, 'sequencer_l': 16.6},
    **{'volo_d1': 6.8, 'volo_d2': 14.1, 'volo_d3': 20.6, 'volo_d4': 43.8},
}


def projected_padding(backbone: SwinTransformer, shape: tuple[int, ...]) -> int:
    """MACs of both projections of the attention on the tokens that fill up windows."""
    macs = 0
    for depth, C, stride in zip(backbone.arch['depths'], backbone.out_channels, backbone.out_strides, strict=True):
        H, W = (edge // stride for edge in shape[2:])
        macs += depth * (-(-H // 7) * -(-W // 7) * 49 - H * W) * 4 * C * C
    return macs


@pytest.mark.parametrize(
    ('network', 'recipe', 'published'),
    [
        pytest.param(network, recipe, g, marks=() if network == 'swin_t' else pytest.mark.slow)
        for recipe, rows in DENSE.items()
        for network, g in rows.items()
    ],
)
def test_published_cost_of_detectors_and_segmentors(network, recipe, published):
    segmentor = recipe.startswith('upernet')
    pytest.importorskip('mmseg' if segmentor else 'mmdet')
    cfg = Config.fromfile(CONFIGS / f'{network}_{recipe}.py')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    cost = model_cost(model, (512, 2048) if segmentor else (800, 1280))
    # The authors project the padding of the windows too; we do not. What is left is norms and biases.
    assert cost.macs / 1e9 < published
    assert (cost.macs + projected_padding(model.backbone, cost.input_shape)) / 1e9 == pytest.approx(
        published, rel=2.5e-3
    )
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert not cost.not_counted
    parts = {'roi_head.bbox_head', 'roi_head.mask_head', 'rpn_head', 'neck', 'backbone'}
    assert set(cost.parts) == ({'backbone', 'decode_head', 'auxiliary_head'} if segmentor else parts)
    assert cost.not_run == (('auxiliary_head',) if segmentor else ())


@pytest.mark.parametrize(
    ('name', 'published'),
    [
        pytest.param(*row, marks=() if row[0] in ('swin_t', 'maxvit_t', 'sequencer_s') else pytest.mark.slow)
        for row in CLASSIFIERS.items()
    ],
)
def test_published_cost_of_classifiers(name, published):
    """The backbone and the linear layer to 1000 classes after its pooling."""
    cls, arch = backbone_names()[name]
    options = {'Sequencer2D': {'patch_size': 7, 'pyramid': False}, 'VOLO': {'pyramid': False}}.get(cls, {})
    with torch.device('meta'):
        model = MODELS.build({'type': f'mmext_backbones.{cls}', 'arch': arch, **options})
    cost = model_cost(model, (224, 224))
    assert (cost.macs + 1000 * model.out_channels[-1]) / 1e9 == pytest.approx(published, rel=TOLERANCE)
    assert not cost.not_counted
    assert not cost.not_run


def test_box_and_mask_heads_by_hand():
    """1000 regions through two linear layers and both outputs, 100 through six convolutions, one of them transposed."""
    pytest.importorskip('mmdet')
    cost = model_cost(build_network(str(CONFIGS / 'swin_t_maskrcnn_1x.py')), (64, 64))
    box = 1000 * (256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 320))
    mask = 100 * (4 * 196 * 256 * 256 * 9 + 196 * 256 * 256 * 4 + 784 * 256 * 80)
    assert cost.parts['roi_head.bbox_head'].macs == box
    assert cost.parts['roi_head.mask_head'].macs == mask


# --------------------------------------------------------------------------------------------------------------------
# The tool


def test_names_of_backbones():
    names = backbone_names()
    assert {'swin_t', 'elsa_swin_b', 'maxvit_xl', 'sequencer_m'} <= set(names)
    assert len(names) == sum(len(cls.ARCHS) for cls in SMALL)  # no two share a name
    with pytest.raises(UserError, match=r"'elsa_swim_t' is neither.*Did you mean 'elsa_swin_t'"):
        build_network('elsa_swim_t')
    with pytest.raises(UserError, match='no such file'):
        build_network('configs/nothing_at_all.py')
    with pytest.raises(UserError, match='has no model'):
        build_network(str(CONFIGS / '_base_' / 'schedules' / 'coco_1x.py'))


def test_tool_prints_a_table_and_json(run_tool):
    options = ('sequencer_s', '--size', '224', '224', '--cfg-options', 'patch_size=7', 'pyramid=False')
    table = run_tool('model_cost', *options)
    assert table.returncode == 0, table.stderr
    rows = {line.split()[0]: line.split()[1:] for line in table.stdout.splitlines() if line.strip()}
    assert rows['total'] == ['27.27', '8.334', '13.47']
    assert '1 FLOP of the papers = 1 multiply-add' in table.stdout
    cost = json.loads(run_tool('model_cost', *options, '--json').stdout)
    assert f'{cost["macs"] / 1e9:.3f}' == '8.334'
    assert sum(part['macs'] for part in cost['parts'].values()) == cost['macs']
    assert sum(cost['macs_by_operator'].values()) == cost['macs']


@pytest.mark.parametrize(
    ('args', 'expected'),
    [
        (('swin_t', '--size', '224', '0'), r'positive height and width'),
        (('swin_x', '--size', '224', '224'), r'Did you mean'),
        (('swin_t', '--size', '9', '9', '--cfg-options', 'windowsize=8'), r"Did you mean 'window_size'"),
    ],
    ids=['size', 'name', 'option'],
)
def test_tool_errors(args, expected, run_tool):
    result = run_tool('model_cost', *args)
    assert result.returncode == 2
    assert expected in result.stderr
    assert 'Traceback' not in result.stderr
