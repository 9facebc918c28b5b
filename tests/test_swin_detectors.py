"""Swin's detectors after its paper's description: ATSS, Sparse R-CNN and HTC++, and the block of the last."""

import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.functional import gelu

from mmext_backbones.analysis.cost import model_cost
from mmext_backbones.config.editing import ConfigEditor, walk
from mmext_backbones.datasets.shapes.config import use_shapes
from mmext_backbones.datasets.shapes.files import SEMANTIC_CLASSES, make_shapes
from mmext_backbones.datasets.shapes.scenes import CLASSES
from mmext_backbones.engine import setup, train
from mmext_backbones.necks import GlobalBlockNeck

from .test_datasets.test_shapes_config import one_step

pytest.importorskip('mmdet')

CONFIGS = Path(__file__).parents[1] / 'configs'
ARCH = {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8), '_delete_': True}
CHANNELS = [24, 48, 96, 192]


@functools.cache
def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


@pytest.mark.parametrize(
    ('name', 'epochs', 'steps'),
    [
        ('swin_t_atss_3x', 36, [27, 33]),
        ('swin_t_sparsercnn_3x', 36, [27, 33]),
        ('swin_b_htc_6x', 72, [63, 69]),
        ('swin_l_htc_3x', 36, [27, 33]),
    ],
)
def test_training_of_the_paper(name, epochs, steps):
    """Section 4.2 of Swin's paper and, of HTC++, its appendix A2.2."""
    cfg = load(name)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].milestones) == (epochs, steps)
    assert cfg.param_scheduler[1].end == epochs
    assert re.search("[Aa]fter the paper's description, no config was published", (CONFIGS / f'{name}.py').read_text())


@pytest.mark.parametrize('name', ['swin_t_atss_3x', 'swin_t_sparsercnn_3x'])
def test_they_train_on_the_images_of_the_cascade(name):
    ours, cascade = load(name), load('swin_t_cascade_3x')
    steps, theirs = (cfg.train_dataloader.dataset.pipeline for cfg in (ours, cascade))
    assert [step.type for step in steps] == [step.type for step in theirs]
    assert steps[3] == theirs[3]  # the scales and the crop
    assert not steps[1].get('with_mask')
    assert ours.test_evaluator.metric == 'bbox'
    assert ours.model.test_cfg.get('rcnn', ours.model.test_cfg).max_per_img == (300 if 'sparse' in name else 100)


@pytest.mark.parametrize('name', ['swin_b_htc_6x', 'swin_l_htc_3x'])
def test_ingredients_of_htc(name):
    cfg = load(name)
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert list(steps)[:3] == ['LoadImageFromFile', 'InstaBoost', 'LoadAnnotations']  # it moves polygons
    assert steps['LoadAnnotations'].with_seg
    assert steps['RandomResize'].scale == [(1600, 400), (1600, 1400)]
    assert cfg.train_dataloader.dataset.data_prefix.seg == 'stuffthingmaps/train2017/'
    model = cfg.model
    assert (model.neck.type, model.neck.neck.type) == ('mmext_backbones.GlobalBlockNeck', 'FPN')
    assert model.test_cfg.rcnn.nms.type == 'soft_nms'
    assert model.roi_head.semantic_head.num_classes == 183
    assert [head.reg_class_agnostic for head in model.roi_head.bbox_head] == [True] * 3
    assert len({tuple(head.bbox_coder.target_stds) for head in model.roi_head.bbox_head}) == 3
    assert [head.get('with_conv_res', True) for head in model.roi_head.mask_head] == [False, True, True]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'made', size=64, num_train=2, num_val=1)


def thin(name: str) -> dict[str, object]:
    """Options that make the network and the layers of the heads narrow, the boxes few, and the test find some."""
    options = {'model.backbone.arch': ARCH, 'model.backbone.init_cfg': None, 'model.neck.in_channels': CHANNELS}
    options |= {'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0}
    options |= {'train_dataloader.persistent_workers': False}
    if 'atss' in name:
        options['model.test_cfg.score_thr'] = 0.0  # its scores begin at 0.01, and no detection means no metric
    smaller = {'fc_out_channels': 64, 'feedforward_channels': 64, 'num_proposals': 20, 'max_per_img': 20}
    for path, node in walk(load(name).model, 'model'):
        options |= {f'{path}.{key}': value for key, value in smaller.items() if key in node}
        if node.get('type') == 'RandomSampler':
            options[f'{path}.num'] = 32
    return options


three = pytest.mark.parametrize('name', ['swin_t_atss_3x', 'swin_t_sparsercnn_3x', 'swin_b_htc_6x'])


@three
def test_a_step_and_a_prediction_on_shapes(name, shapes):
    cfg = copy.deepcopy(load(name))
    use_shapes(cfg, shapes, size=64, num_workers=0)
    cfg.merge_from_dict(thin(name))
    for path, node in walk(cfg.model, 'model'):
        if node.get('type') == 'SyncBN':
            ConfigEditor(cfg).set(f'{path}.type', 'BN')
    loss, metrics = one_step(cfg)
    assert torch.isfinite(loss)
    assert 'coco/bbox_mAP' in metrics
    assert ('coco/segm_mAP' in metrics) == ('htc' in name)
    if 'htc' in name:
        heads = cfg.model.roi_head
        assert heads.semantic_head.num_classes == len(SEMANTIC_CLASSES) + 1
        assert {head.num_classes for head in (*heads.bbox_head, *heads.mask_head)} == {len(CLASSES)}


@pytest.mark.slow
@three
def test_trains_predicts_and_evaluates(name, shapes, tmp_path, monkeypatch):
    """As tests/test_recipes.py has it of the other recipes: a whole run of one iteration on drawn shapes."""
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: shapes)
    monkeypatch.chdir(tmp_path)
    options = thin(name) | {'train_cfg.max_iters': 1}
    metrics = train.train(str(CONFIGS / f'{name}.py'), shapes=True, cfg_options=options, seed=0)
    assert 'coco/bbox_mAP' in metrics
    curves = (tmp_path / 'work_dirs' / f'{name}_shapes' / 'curves.json').read_text()
    assert ('loss_semantic_seg' in curves) == ('htc' in name)


class Together(nn.Module):
    """A neck that hands on what it is given."""

    def __init__(self, in_channels: list[int]) -> None:
        super().__init__()
        self.in_channels = in_channels

    def forward(self, maps: tuple) -> tuple:
        return maps


def test_global_block_is_the_formula_and_leaves_the_other_maps():
    """Against one token after the other; two heads, a map of 2 x 3."""
    init_default_scope('mmengine')
    torch.manual_seed(0)
    neck = GlobalBlockNeck([8, 16], {'type': Together}, head_dim=8).double()
    assert neck.neck.in_channels == [8, 16]
    maps = torch.randn(2, 8, 4, 6).double(), torch.randn(2, 16, 2, 3).double()
    first, last = neck(maps)
    assert first is maps[0]

    block, attn = neck.block, neck.block.attn
    for image, got in zip(maps[1], last, strict=True):
        x = image.flatten(1).T  # [tokens, C]
        q, k, v = attn.qkv(block.norm1(x)).split(16, dim=1)
        heads = []
        for head in (slice(0, 8), slice(8, 16)):
            weights = (q[:, head] @ k[:, head].T / 8**0.5).exp()
            heads.append(weights @ v[:, head] / weights.sum(1, keepdim=True))
        x = x + attn.proj(torch.cat(heads, dim=1))
        x = x + block.mlp.fc2(gelu(block.mlp.fc1(block.norm2(x))))
        torch.testing.assert_close(got, x.T.view(16, 2, 3), rtol=0, atol=1e-12)


def test_global_block_says_which_widths_it_takes():
    with pytest.raises(ValueError, match=r'in_channels=\[96, 200\]: .*head_dim=32'):
        GlobalBlockNeck([96, 200], {'type': Together})


def test_costs_are_of_all_parts():
    """Those of HTC's semantic branch and of the learnt proposals of Sparse R-CNN among them."""
    init_default_scope('mmdet')
    parts = {'swin_b_htc_6x': 'roi_head.semantic_head', 'swin_t_sparsercnn_3x': 'roi_head.bbox_head'}
    for name, part in parts.items():
        with torch.device('meta'):
            cost = model_cost(MODELS.build(load(name).model), (64, 64))
        assert cost.not_run == ()
        assert cost.parts[part].macs > 0


def test_published_parameters_ask_for_the_whole_block():
    """160 and 284 M are published; without the block, or with one of attention alone, they would be 147 and 255."""
    init_default_scope('mmdet')
    for name, published in (('swin_b_htc_6x', 160), ('swin_l_htc_3x', 284)):
        with torch.device('meta'):
            model = MODELS.build(load(name).model)
        block = sum(parameter.numel() for parameter in model.neck.block.parameters()) / 1e6
        all_of_them = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert abs(all_of_them - published) < 1
        assert abs(all_of_them - block * 2 / 3 - published) > 1
