"""Learning rates that decay from layer to layer, against depths read off the flow of gradients, and mmpretrain's."""

import copy
import logging
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch import nn

from mmext_backbones.backbones import ELSASwin, MaxViT, Sequencer2D, SwinTransformer
from tests.test_backbones.test_contract import SMALL, each_class, image, loss

CONSTRUCTOR = 'mmext_backbones.LayerDecayOptimWrapperConstructor'
DEPTHS = (1, 2, 3, 2)  # no two neighbours alike, so that a wrong offset shows
BASE_LR, RATE = 1e-3, 0.7
KINDS = {'detector': 'mmdet', 'segmentor': 'mmseg', 'classifier': 'mmpretrain'}
NO_DECAY = Config.fromfile(Path(__file__).parents[2] / 'configs/_base_/no_decay.py').no_decay.to_dict()
RULES = {
    'norm_decay_mult': 0.5,
    'bias_lr_mult': 2.0,
    'bias_decay_mult': 0.0,
    'flat_decay_mult': 0.25,
    'dwconv_decay_mult': 0.125,
    'custom_keys': {
        'stages.1': {'lr_mult': 0.5},
        'stages.2.blocks.0': {'lr_mult': 3.0, 'decay_mult': 0.1},
        'head': {'lr_mult': 10.0},
    },
}

each_kind = pytest.mark.parametrize('kind', KINDS)


def base_config(address):
    return Config.fromstring(f"_base_ = ['{address}']", '.py').model


@lru_cache
def model_of(kind, cls, **options):
    """A model of the library with a small backbone of ours, and small heads."""
    pytest.importorskip(KINDS[kind])
    backbone = {'type': f'mmext_backbones.{cls.__name__}', 'arch': SMALL[cls] | {'depths': DEPTHS}, **options}
    channels = list(MODELS.build(copy.deepcopy(backbone)).out_channels)
    if kind == 'detector':
        cfg = base_config('mmdet::_base_/models/mask-rcnn_r50_fpn.py')
        cfg.backbone = backbone
        cfg.neck.in_channels, cfg.roi_head.bbox_head.fc_out_channels = channels, 16
    elif kind == 'segmentor':
        cfg = base_config('mmseg::_base_/models/upernet_swin.py')
        cfg.backbone = backbone
        cfg.decode_head.in_channels, cfg.auxiliary_head.in_channels = channels, channels[2]
        cfg.decode_head.channels = cfg.auxiliary_head.channels = 16
    else:
        cfg = classifier_config(backbone, channels[-1])
    return build_model(KINDS[kind], cfg)


def classifier_config(backbone, channels):
    head = {'type': 'LinearClsHead', 'num_classes': 5, 'in_channels': channels}
    return {'type': 'ImageClassifier', 'backbone': backbone, 'neck': {'type': 'GlobalAveragePooling'}, 'head': head}


def build_model(library, cfg):
    registry = pytest.importorskip(f'{library}.registry').MODELS
    return registry.build(cfg)


def wrapper(model, constructor=CONSTRUCTOR, **paramwise):
    optimizer = {'type': 'AdamW', 'lr': BASE_LR, 'weight_decay': 0.05}
    cfg = {'type': 'OptimWrapper', 'constructor': constructor, 'optimizer': optimizer, 'paramwise_cfg': paramwise}
    return build_optim_wrapper(model, cfg)


def decayed(model, rate=RATE, **paramwise):
    return settings(model, wrapper(model, layer_decay_rate=rate, **paramwise))


def plain(model, **paramwise):
    return settings(model, wrapper(model, 'DefaultOptimWrapperConstructor', **paramwise))


def settings(model, optim_wrapper):
    """Name -> (learning rate, weight decay) of every parameter that is trained."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group) for group in optim_wrapper.optimizer.param_groups for p in group['params']]
    assert max(Counter(name for name, _ in found).values()) == 1, 'a parameter in two groups'
    return {name: (group['lr'], group['weight_decay']) for name, group in found}


def flow_of_gradients(backbone):
    """Depth of every parameter by what it can change, and the blocks as they ran; no name is looked at.

    A parameter is of the layer whose output is the first that depends on it, where layer 0 is what comes before the
    first block, a map on its way from block i to the next is an output of layer i, and the last layer is what no block
    depends on.
    """
    backbone = copy.deepcopy(backbone).eval().requires_grad_()
    blocks, maps = [], []

    def run_block(stage, block, x, *context):
        blocks.append(block)
        maps.append(x)
        return block(x, *context)

    last_output = None

    def keep_output(module, args, output):
        nonlocal last_output
        last_output = output

    backbone.run_block = run_block
    handles = [m.register_forward_hook(keep_output) for stage in backbone.stages for m in stage.blocks]
    backbone(image(40, 72))
    for handle in handles:
        handle.remove()
    maps.append(last_output)
    parameters = dict(backbone.named_parameters())
    depths = dict.fromkeys(parameters, len(maps))
    for depth in reversed(range(len(maps))):
        grads = torch.autograd.grad(
            loss([maps[depth]]), list(parameters.values()), retain_graph=True, allow_unused=True
        )
        depths.update({name: depth for name, grad in zip(parameters, grads, strict=True) if grad is not None})
    depths.update({name: 0 for name in depths if 'absolute_pos_embed' in name})  # learnt as the stem is
    return depths, [{id(p) for p in block.parameters()} for block in blocks], backbone


@each_class
@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (3,), (1, 2), (0,)], ids=str)
def test_depth_is_that_of_the_flow_of_gradients(cls, out_indices):
    backbone = cls(SMALL[cls] | {'depths': DEPTHS}, out_indices=out_indices)
    expected, blocks, _ = flow_of_gradients(backbone)
    num_layers = len(blocks) + 2
    assert set(expected.values()) >= set(range(num_layers - 1))
    for name, depth in expected.items():
        assert backbone.get_layer_depth(name) == (depth, num_layers), name
        assert backbone.get_layer_depth(f'a.backbone.{name}', 'a.backbone.') == (depth, num_layers)
    for stranger in ('decode_head.conv.weight', 'backbone2.patch_embed.proj.weight', 'stages.0.blocks.0.weight'):
        assert backbone.get_layer_depth(stranger, 'backbone.') == (num_layers - 1, num_layers)


def test_positions_and_optional_norms():
    swin = SwinTransformer(SMALL[SwinTransformer])
    swin.absolute_pos_embed = nn.Parameter(torch.zeros(1))
    assert swin.get_layer_depth('backbone.absolute_pos_embed', 'backbone.') == (0, 10)
    maxvit = MaxViT(SMALL[MaxViT], out_norm=True)
    assert maxvit.get_layer_depth('norm1.weight') == (9, 10)
    assert maxvit.get_layer_depth('stem.norm1.weight') == (0, 10)
    raw = Sequencer2D(SMALL[Sequencer2D], patch_size=7, pyramid=False)
    assert raw.get_layer_depth('stages.2.downsample.bias') == (6, 10)


@each_kind
@each_class
def test_rates_follow_the_depth(kind, cls):
    model = model_of(kind, cls)
    depths, blocks, backbone = flow_of_gradients(model.backbone)
    last = len(blocks) + 1
    actual = decayed(model, **NO_DECAY)
    expected = plain(model, **NO_DECAY)
    assert actual.keys() == expected.keys() == {name for name, _ in model.named_parameters()}
    for name, (lr, decay) in actual.items():
        depth = depths[name.removeprefix('backbone.')] if name.startswith('backbone.') else last
        assert lr == pytest.approx(BASE_LR * RATE ** (last - depth), rel=1e-12), name
        exempt = any(part in name for part in ('norm', 'relative_position_bias_table', 'absolute_pos_embed'))
        assert decay == expected[name][1] == (0 if exempt else 0.05), name

    # along the image's way: the stem, then each block slower than the next one by exactly the rate, then the heads
    rates = [{lr for name, (lr, _) in actual.items() if name.startswith('backbone.') and depths[name[9:]] == 0}]
    names = {id(p): f'backbone.{name}' for name, p in backbone.named_parameters()}
    rates += [{actual[names[parameter]][0] for parameter in block} for block in blocks]
    rates += [{lr for name, (lr, _) in actual.items() if not name.startswith('backbone.')}]
    assert [len(each) for each in rates] == [1] * (sum(DEPTHS) + 2)
    rates = [lr for (lr,) in rates]
    assert [later / earlier for earlier, later in pairwise(rates)] == pytest.approx([1 / RATE] * last)
    assert rates[-1] == BASE_LR


@each_kind
@each_class
def test_rules_of_mmengine_multiply(kind, cls):
    model = model_of(kind, cls)
    actual, expected = decayed(model, **RULES), plain(model, **RULES)
    assert actual.keys() == expected.keys()
    for name, (lr, decay) in expected.items():
        depth, num_layers = model.backbone.get_layer_depth(name, 'backbone.')
        assert actual[name] == (pytest.approx(lr * RATE ** (num_layers - 1 - depth), rel=1e-12), decay), name
    # the rules above did act
    assert len({lr for lr, _ in expected.values()}) >= 4
    assert len({decay for _, decay in expected.values()}) >= 4
    assert any(lr == 10 * BASE_LR for lr, _ in actual.values())  # a head: its own factor, and scale 1


@each_kind
@each_class
def test_rate_of_one_changes_nothing(kind, cls):
    model = model_of(kind, cls)
    for rules in (NO_DECAY, RULES, {}):
        assert decayed(model, rate=1.0, **rules) == plain(model, **rules)


@each_kind
def test_frozen_parameters_are_left_out(kind):
    model = model_of(kind, SwinTransformer, frozen_stages=2)
    actual = decayed(model)
    assert actual.keys() == plain(model, **NO_DECAY).keys()
    assert actual.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert 'backbone.stages.1.blocks.0.norm1.weight' not in actual
    # freezing does not renumber the layers: 8 blocks, of which 3 are frozen
    assert actual['backbone.stages.2.blocks.0.norm1.weight'][0] == pytest.approx(BASE_LR * RATE**5)


@each_class
def test_a_group_for_each_set_of_options(cls):
    model = model_of('classifier', cls)
    groups = wrapper(model, layer_decay_rate=RATE, **NO_DECAY).optimizer.param_groups
    assert len(groups) == len({(group['lr'], group['weight_decay']) for group in groups}) < 2 * (sum(DEPTHS) + 2) + 1


def swin_classifier(kind):
    arch = {key: SMALL[SwinTransformer][key] for key in ('embed_dims', 'num_heads')} | {'depths': DEPTHS}
    backbone = {'type': f'{kind}.SwinTransformer', 'arch': arch, 'out_indices': (3,)}
    return build_model('mmpretrain', classifier_config(backbone, 8 * arch['embed_dims']))


def test_swin_decays_as_in_mmpretrain():
    """The same rates and weight decays for the same shapes; there is no difference to explain."""
    ours, theirs = swin_classifier('mmext_backbones'), swin_classifier('mmpretrain')
    paramwise = {'layer_decay_rate': RATE, 'norm_decay_mult': 0.0, 'bias_decay_mult': 0.0}

    def counted(model, constructor):
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        found = settings(model, wrapper(model, constructor, **paramwise))
        return Counter((shapes[name], round(lr, 12), decay) for name, (lr, decay) in found.items())

    expected = counted(theirs, 'mmpretrain.LearningRateDecayOptimWrapperConstructor')
    assert len({lr for _, lr, _ in expected}) == sum(DEPTHS) + 2
    assert counted(ours, CONSTRUCTOR) == expected
    assert counted(ours, 'mmpretrain.LearningRateDecayOptimWrapperConstructor') == expected
    assert counted(theirs, CONSTRUCTOR) == expected


@pytest.mark.parametrize(
    'backbone',
    [
        {'type': 'ConvNeXt', 'arch': {'depths': [1, 1, 3, 1], 'channels': [8, 8, 8, 8]}},
        {'type': 'VisionTransformer', 'arch': {'embed_dims': 8, 'num_layers': 3, 'num_heads': 2,
                                               'feedforward_channels': 16}},
        {'type': 'ResNet', 'depth': 50, 'base_channels': 4, 'stem_channels': 4},
    ],
    ids=lambda backbone: backbone['type'],
)  # fmt: skip
def test_backbones_of_mmpretrain_decay_as_there(backbone):
    model = build_model('mmpretrain', classifier_config(backbone, 8))
    paramwise = {'layer_decay_rate': RATE, 'norm_decay_mult': 0.0, 'flat_decay_mult': 0.0}
    theirs = settings(model, wrapper(model, 'mmpretrain.LearningRateDecayOptimWrapperConstructor', **paramwise))
    assert decayed(model, norm_decay_mult=0.0, flat_decay_mult=0.0) == theirs
    assert len({lr for lr, _ in theirs.values()}) > 3


class Wrapped(nn.Module):
    """As a data-parallel wrapper holds its model."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_backbones_anywhere():
    """Two of different depth in the middle of a model, a wrapped model, and a backbone that is the model."""
    shallow = SwinTransformer(SMALL[SwinTransformer] | {'depths': (1, 1, 1, 1)})
    deep = ELSASwin(SMALL[ELSASwin])
    student = nn.ModuleDict({'backbone': shallow, 'backbone_2': deep, 'neck': nn.Linear(2, 2)})
    model = nn.ModuleDict({'student': student, 'head': nn.Linear(2, 2)})
    actual = settings(model, wrapper(Wrapped(model), layer_decay_rate=RATE))
    assert actual.keys() == {name for name, _ in model.named_parameters()}
    lr = {name: lr / BASE_LR for name, (lr, _) in actual.items()}
    assert lr['student.backbone.patch_embed.proj.weight'] == pytest.approx(RATE**5)
    assert lr['student.backbone_2.patch_embed.proj.weight'] == pytest.approx(RATE**9)
    assert lr['student.backbone_2.stages.3.blocks.1.mlp.fc1.bias'] == pytest.approx(RATE)
    assert lr['student.neck.weight'] == lr['head.bias'] == lr['student.backbone_2.norm0.bias'] == 1

    alone = decayed(shallow)
    assert alone['patch_embed.proj.weight'][0] == pytest.approx(BASE_LR * RATE**5)
    assert alone['norm3.bias'][0] == BASE_LR


def test_a_backbone_around_another_answers_for_both():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = SwinTransformer(SMALL[SwinTransformer])
            self.extra = nn.Linear(2, 2)

        def get_layer_depth(self, param_name, prefix=''):
            return (1 if param_name.startswith(f'{prefix}extra') else 0), 3

    lr = {name: lr for name, (lr, _) in decayed(nn.ModuleDict({'tower': Tower(), 'head': nn.Linear(2, 2)})).items()}
    assert {lr.pop(f'head.{part}') for part in ('weight', 'bias')} == {BASE_LR}
    assert {lr.pop(f'tower.extra.{part}') for part in ('weight', 'bias')} == {BASE_LR * RATE}
    assert set(lr.values()) == {BASE_LR * RATE**2}


def test_shared_parameters_need_the_switch():
    model = nn.ModuleDict({'backbone': SwinTransformer(SMALL[SwinTransformer]), 'a': nn.Linear(2, 2)})
    model['b'] = nn.Sequential(model['a'])
    with pytest.raises(ValueError, match=r'a\.weight is used at two places .*bypass_duplicate=True'):
        decayed(model)
    assert decayed(model, bypass_duplicate=True).keys() == {name for name, _ in model.named_parameters()}


def test_one_step_moves_each_layer_by_its_rate():
    """Plain gradient descent on the sum of all parameters: each moves by its learning rate."""
    model = SwinTransformer(SMALL[SwinTransformer])
    optimizer = {'type': 'SGD', 'lr': 0.5}
    cfg = {'constructor': CONSTRUCTOR, 'optimizer': optimizer, 'paramwise_cfg': {'layer_decay_rate': RATE}}
    optim_wrapper = build_optim_wrapper(model, cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optim_wrapper.update_params(sum(p.sum() for p in model.parameters()))
    for name, p in model.named_parameters():
        depth, num_layers = model.get_layer_depth(name)
        step = torch.full_like(p, 0.5 * RATE ** (num_layers - 1 - depth))
        torch.testing.assert_close(before[name] - p.detach(), step, rtol=1e-4, atol=1e-6)
    assert optim_wrapper.get_lr()['base_lr'] == [0.5]  # what the log shows as the rate of the run


def test_one_line_is_logged():
    class Kept(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.INFO:
                lines.append(record.getMessage())

    lines, handler, logger = [], Kept(), MMLogger.get_current_instance()
    filters = list(logger.filters)
    model = model_of('classifier', SwinTransformer)
    logger.addHandler(handler)
    try:
        wrapper(model, layer_decay_rate=0.5, **NO_DECAY)
        assert lines == [
            'learning rates decay by 0.5 a layer: 10 layers in backbone; '
            'scales from 0.001953 to 1 in 20 parameter groups'
        ]
        assert logger.filters == filters
        plain(model, **NO_DECAY)  # mmengine's own still writes one for each parameter
        assert len(lines) > 50
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize('rate', [0, -0.5, 1.01, None, '0.9'])
def test_rate_out_of_range_is_named(rate):
    with pytest.raises(ValueError, match=f'layer_decay_rate={rate!r}: expected a number above 0 and at most 1'):
        wrapper(SwinTransformer(SMALL[SwinTransformer]), layer_decay_rate=rate)


def test_what_is_missing_is_named():
    backbone = SwinTransformer(SMALL[SwinTransformer])
    with pytest.raises(ValueError, match=r'layer_decay_rate=None.*keys given are decay_rate, num_layers'):
        wrapper(backbone, decay_rate=0.9, num_layers=12)
    with pytest.raises(ValueError, match='keys given are none'):
        wrapper(backbone)
    cfg = {'constructor': CONSTRUCTOR, 'optimizer': {'type': 'Adam'}, 'paramwise_cfg': {'layer_decay_rate': 0.9}}
    with pytest.raises(ValueError, match='expected a learning rate'):
        build_optim_wrapper(backbone, cfg)


def test_model_without_such_a_backbone_is_named():
    cfg = classifier_config({'type': 'MobileNetV2'}, 1280)
    with pytest.raises(ValueError, match=r'ImageClassifier has no backbone .* needs .*get_layer_depth\(param_name'):
        decayed(build_model('mmpretrain', cfg))
    with pytest.raises(ValueError, match='MaskRCNN has no backbone'):
        decayed(build_model('mmdet', base_config('mmdet::_base_/models/mask-rcnn_r50_fpn.py')))


@pytest.mark.parametrize(
    'library', ['mmdet', *(pytest.param(name, marks=pytest.mark.slow) for name in ('mmseg', 'mmpretrain'))]
)
def test_qualified_name_builds_with_nothing_imported_but_the_library(library, fresh):
    pytest.importorskip(library)
    code = (
        'import sys\n'
        f'import {library}\n'
        'from mmengine.config import ConfigDict\n'
        'from mmengine.optim import build_optim_wrapper\n'
        'from mmengine.registry import init_default_scope\n'
        'from torch import nn\n'
        'class Net(nn.Linear):\n'
        '    def get_layer_depth(self, param_name, prefix=""):\n'
        '        return 0, 3\n'
        f'init_default_scope("{library}")\n'
        "assert 'mmext_backbones' not in sys.modules\n"
        'wrapper = build_optim_wrapper(Net(2, 2), ConfigDict(\n'
        f'    constructor="{CONSTRUCTOR}", paramwise_cfg=dict(layer_decay_rate=0.5),\n'
        '    optimizer=dict(type="AdamW", lr=8.0)))\n'
        'print("lr", [group["lr"] for group in wrapper.param_groups])\n'
    )
    result = fresh(library).run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == 'lr [2.0]'
