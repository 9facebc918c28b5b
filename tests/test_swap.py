"""Swapping backbones: configs of the installed libraries and awkward ones of users, in code and by the command."""

import copy
import functools
import re
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from mmext_backbones.config.files import load_config
from mmext_backbones.config.writing import difference, unscoped, written
from mmext_backbones.swap import SwapRefused, swap_backbone
from mmext_backbones.swap import __main__ as command
from mmext_backbones.swap.__main__ import check, main
from mmext_backbones.swap.checks import build_model, forward
from mmext_backbones.swap.maps import Map, backbone_maps
from mmext_backbones.utils.errors import UserError

SWIN_T = [96, 192, 384, 768]
FASTER = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
PSP = 'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py'
TINY = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3,), init_cfg=dict(type='Pretrained', checkpoint='no.pth')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
)
data_preprocessor = dict(num_classes=3, mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9), clip_grad=dict(max_norm=5.0))
auto_scale_lr = dict(base_batch_size=256)
"""  # noqa: E501

pytestmark = pytest.mark.usefixtures('maps_found_once')


@pytest.fixture
def small_images(monkeypatch, one_block_a_stage):
    """Shallow models are run on images of 64 pixels, where they take these."""
    monkeypatch.setattr(command, 'FORWARD_SIZE', 64)


@functools.cache
def read_once(config: str) -> Config:
    return load_config(config)


def original(config: str) -> Config:
    """A config that a test may edit."""
    return copy.deepcopy(read_once(config))


def swapped(config: str, name: str = 'swin_t', **options) -> Config:
    return swap_backbone(read_once(config), name, **options)


def child_of(tmp_path: Path, text: str, name: str = 'mine.py') -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# --------------------------------------------------------------------------------------------------------------------
# Who takes the maps


@pytest.mark.parametrize(
    ('config', 'out_indices', 'stated'),
    [
        (FASTER, None, {'neck.in_channels': SWIN_T}),
        ('mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py', None, {'neck.in_channels': SWIN_T}),
        ('mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py', None, {'neck.in_channels': SWIN_T}),
        (
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
            (1, 2, 3),
            {'neck.in_channels': SWIN_T[1:], 'neck.start_level': 0, 'neck.num_outs': 5},
        ),
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', (1, 2, 3), {'neck.in_channels': SWIN_T[1:]}),
        (
            'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
            (1, 2, 3),
            {'neck.in_channels': SWIN_T[1:], 'neck.out_channels': 256},
        ),
        ('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', (1, 2, 3), {'neck.in_channels': SWIN_T[1:]}),
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', (3,), {'neck.in_channels': [768]}),
        ('mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py', (3,), {'neck.in_channels': 768}),
        ('mmdet::rpn/rpn_r50-caffe-c4_1x_coco.py', (2,), {'rpn_head.in_channels': 384}),
        ('mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', (1, 2, 3), {'neck.in_channels': SWIN_T[1:]}),
        ('mmdet::hrnet/fcos_hrnetv2p-w18-gn-head_4xb4-1x_coco.py', None, {'neck.in_channels': SWIN_T}),
        (
            'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
            None,
            {'panoptic_head.in_channels': SWIN_T, 'panoptic_head.strides': [4, 8, 16, 32]},
        ),
        (
            'mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py',
            None,
            {'decode_head.in_channels': SWIN_T, 'auxiliary_head.in_channels': 384, 'pretrained': None},
        ),
        (PSP, None, {'decode_head.in_channels': 768, 'auxiliary_head.in_channels': 384, 'decode_head.channels': 512}),
        (
            'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
            None,
            {'decode_head.in_channels': 768, 'decode_head.c1_in_channels': 96},
        ),
        (
            'mmseg::sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py',
            None,
            {'neck.in_channels': SWIN_T, 'decode_head.in_channels': [256] * 4},
        ),
        (  # the neck hands maps on to the auxiliary head
            'mmseg::fastfcn/fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024.py',
            (1, 2, 3),
            {'neck.in_channels': (192, 384, 768), 'decode_head.in_channels': 2048, 'auxiliary_head.in_channels': 384},
        ),
        (
            'mmseg::ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024.py',
            None,
            {'decode_head.0.in_channels': SWIN_T, 'decode_head.1.in_channels': SWIN_T, 'decode_head.1.channels': 512},
        ),
        (
            'mmseg::knet/knet-s3_r50-d8_deeplabv3_8xb2-adamw-80k_ade20k-512x512.py',
            None,
            {'decode_head.kernel_generate_head.in_channels': 768, 'auxiliary_head.in_channels': 384},
        ),
        (  # heads in cascade, whose maps no longer have one size
            'mmseg::ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
            None,
            {'decode_head.0.in_index': 3, 'decode_head.0.in_channels': 768, 'decode_head.1.in_channels': 768},
        ),
        (  # a head without a layer between its maps and its classifier
            'mmseg::segmenter/segmenter_vit-s_fcn_8xb1-160k_ade20k-512x512.py',
            (2,),
            {'decode_head.in_channels': 384, 'decode_head.channels': 384},
        ),
        (  # regions of the map itself
            'mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py',
            (2,),
            {
                'rpn_head.in_channels': 384,
                'roi_head.bbox_roi_extractor.out_channels': 384,
                'roi_head.bbox_head.in_channels': 384,
            },
        ),
        ('mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py', (1, 2, 3), {'neck.in_channels': SWIN_T[1:]}),
        (
            'mmdet::mm_grounding_dino/coco/grounding_dino_swin-t_finetune_16xb4_1x_coco.py',
            (1, 2, 3),
            {'neck.in_channels': SWIN_T[1:], 'backbone.with_cp': True},
        ),
        ('mmpretrain::resnet/resnet50_8xb32_in1k.py', (3,), {'head.in_channels': 768}),
        (  # a backbone that returns a token gives way to one that returns a map
            'mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py',
            (3,),
            {'neck.type': 'GlobalAveragePooling', 'head.in_channels': 768},
        ),
    ],
)
def test_whoever_takes_the_maps_is_told(config, out_indices, stated):
    model = swapped(config).model
    assert model.backbone.type == 'mmext_backbones.SwinTransformer'
    assert model.backbone.get('out_indices') == out_indices
    for key, value in stated.items():
        node = model
        for part in key.split('.'):
            node = node[int(part) if part.isdigit() else part]
        assert node == value, key


@pytest.mark.parametrize(
    ('name', 'config'),
    [
        pytest.param('elsa_swin_t', FASTER, marks=pytest.mark.slow),
        ('sequencer_s', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('swin_t', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
        ('maxvit_t', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'),
        pytest.param(
            'swin_t',
            'mmseg::fastfcn/fastfcn_r50-d32_jpu_aspp_4xb2-80k_cityscapes-512x1024.py',
            marks=pytest.mark.slow,
        ),
        ('sequencer_s', PSP),
        ('volo_d1', 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
        ('elsa_volo_d1', PSP),
        ('maxvit_t', 'mmpretrain::resnet/resnet50_8xb32_in1k.py'),
        ('swin_t', 'mmdet::reid/reid_r50_8xb32-6e_mot15train80_test-mot15val20.py'),  # its pooling wants 256 x 128
        pytest.param('maxvit_t', 'mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py', marks=pytest.mark.slow),
        ('elsa_swin_t', 'mmseg::ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py'),
    ],
)
@pytest.mark.usefixtures('one_block_a_stage')
def test_swapped_models_predict(name, config, monkeypatch):
    if not re.search('dino|reid', config):  # which take no smaller images
        monkeypatch.setattr(command, 'FORWARD_SIZE', 64)
    cfg = swapped(config, name)
    assert check(config, cfg, cfg) is None


@pytest.mark.usefixtures('one_block_a_stage')
def test_retinanet_without_its_first_map_leaves_no_parameter_without_gradient():
    cfg = swapped('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build_model(cfg).train()
        scores, boxes = model(torch.randn(1, 3, 64, 64), mode='tensor')
    sum(x.square().sum() for x in (*scores, *boxes)).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]
    assert 'find_unused_parameters' not in cfg


def test_maps_without_reader_ask_for_find_unused_parameters():
    assert swapped(PSP).find_unused_parameters
    assert 'find_unused_parameters' not in swapped('mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py')


def test_maps_are_those_of_the_network():
    cfg = original(PSP)
    with DefaultScope.overwrite_default_scope('mmseg'):
        dilated = backbone_maps(cfg.model.backbone)
    assert dilated == [Map(256, 4), Map(512, 8), Map(1024, 8), Map(2048, 8)]


# --------------------------------------------------------------------------------------------------------------------
# Images, weights, optimizer


def test_images_of_caffe_become_those_of_the_weights():
    old = original('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py')
    assert old.model.data_preprocessor.std == [1.0] * 3
    new = swap_backbone(old, 'swin_t').model.data_preprocessor
    assert (new.mean, new.std, new.bgr_to_rgb) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)
    assert swap_backbone(old, 'maxvit_xl').model.data_preprocessor.std == [127.5] * 3
    assert old.model.backbone.type == 'ResNet'  # the original stays


def test_images_that_the_pipeline_normalises_are_normalised_once():
    cfg = original(FASTER)
    cfg.model.data_preprocessor = {'type': 'DetDataPreprocessor', 'pad_size_divisor': 32}
    caffe = {'type': 'Normalize', 'mean': [103.53, 116.28, 123.675], 'std': [1.0, 1.0, 1.0], 'to_rgb': False}
    cfg.train_dataloader.dataset.pipeline.insert(3, caffe)
    fractions = {'type': 'Normalize', 'mean': [0.5] * 3, 'std': [0.5] * 3}
    cfg.test_dataloader.dataset.pipeline.insert(2, {'type': 'Albu', 'transforms': [fractions]})
    new = swap_backbone(cfg, 'swin_t')
    assert new.model.data_preprocessor == cfg.model.data_preprocessor
    step = new.train_dataloader.dataset.pipeline[3]
    assert (step.mean, step.std, step.to_rgb) == ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375], True)
    step = new.test_dataloader.dataset.pipeline[2].transforms[0]
    assert step.mean == pytest.approx([0.485, 0.456, 0.406])
    assert 'to_rgb' not in step


def test_weights_of_the_old_backbone_are_forgotten():
    cfg = original(PSP)
    cfg.load_from = 'pspnet.pth'
    new = swap_backbone(cfg, 'swin_t', weights='mine.pth')
    assert new.model.pretrained is None
    assert new.load_from is None
    assert new.model.backbone.init_cfg == {'type': 'Pretrained', 'checkpoint': 'mine.pth'}
    assert swap_backbone(cfg, 'swin_t', weights=None).model.backbone.init_cfg is None


def test_nested_detector():
    cfg = swapped('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')
    assert cfg.model.detector.neck.in_channels == SWIN_T
    assert cfg.model.data_preprocessor.data_preprocessor.bgr_to_rgb


def test_sgd_becomes_adamw_unless_kept():
    old = original(PSP)
    new = swap_backbone(old, 'swin_t')
    assert (new.optim_wrapper.optimizer.type, new.optim_wrapper.optimizer.lr) == ('AdamW', 6e-5)
    warmup, poly = new.param_scheduler
    assert warmup.type == 'LinearLR'
    assert poly.eta_min == pytest.approx(1e-4 * 6e-5 / 0.01)  # the old floor lies above the new rate
    kept = swap_backbone(old, 'swin_t', keep_optimizer=True)
    assert kept.optim_wrapper == old.optim_wrapper
    assert kept.param_scheduler == old.param_scheduler


@pytest.mark.parametrize('name', ['swin_t', 'maxvit_t', 'sequencer_s'])
def test_rates_and_decays_of_a_backbone_with_its_own_rate(name):
    """DETR's key `backbone` would swallow the shorter `norm`: mmengine takes the longest key alone."""
    cfg = swapped('mmdet::detr/detr_r50_8xb2-150e_coco.py', name)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = build_model(cfg, 'meta')
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for key, parameter in model.named_parameters():
        group = groups[id(parameter)]
        assert group['lr'] == pytest.approx(1e-5 if key.startswith('backbone.') else 1e-4), key
        if key.startswith('backbone.'):
            free = 'norm' in key or 'relative_position_bias_table' in key
            assert group['weight_decay'] == pytest.approx(0.0 if free else 1e-4), key


def test_layer_decay_of_convnext_becomes_ours():
    cfg = swapped('mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py')
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = build_model(cfg, 'meta')
        cfg.optim_wrapper.type = 'OptimWrapper'
        cfg.optim_wrapper.pop('loss_scale')
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {group['lr'] for group in optimizer.param_groups}
    assert max(rates) == pytest.approx(1e-4)
    assert min(rates) == pytest.approx(1e-4 * 0.9**13)  # 12 blocks: the stem is the layer 13 before the last


# --------------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ('config', 'reason'),
    [
        ('mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py', 'shared_head'),
        ('mmdet::ssd/ssd300_coco.py', 'SSD'),
        ('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py', 'YOLOv3'),
        ('mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py', 'stacked hourglasses'),
        ('mmdet::detectors/htc_r50-rfp_1x_coco.py', 'copy of the backbone'),
        ('mmdet::qdtrack/qdtrack_faster-rcnn_r50_fpn_4e_base.py', 'tracker'),
        ('mmseg::san/san-vit-b16_pascal_context-640x640.py', 'CLIP'),
        ('mmdet::misc/d2_faster-rcnn_r50-caffe_fpn_ms-90k_coco.py', 'no backbone of a registry'),
        ('mmseg::setr/setr_vit-l_naive_8xb1-80k_cityscapes-768x768.py', 'strides 16, 16, 16, 16'),
        ('mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py', 'tokens'),
        ('mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py', 'strides 16, 8, 4, 2, 1'),
        ('mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py', 'branches'),
        ('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024.py', 'branches'),
    ],
)
def test_refused_with_the_reason(config, reason):
    with pytest.raises(SwapRefused, match=reason):
        swapped(config)


def test_refused_if_nobody_states_the_channels():
    cfg = original(PSP)
    cfg.model.decode_head.in_channels = cfg.model.auxiliary_head.in_channels = 77
    with pytest.raises(SwapRefused, match='nothing states'):
        swap_backbone(cfg, 'swin_t')


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown backbone 'swim_t'\. Did you mean 'swin_t'\? Known: .*elsa_swin_t"):
        swapped(FASTER, 'swim_t')


def test_no_model():
    with pytest.raises(ValueError, match='has no model'):
        swap_backbone(Config({'a': 1}), 'swin_t')


# --------------------------------------------------------------------------------------------------------------------
# Writing


@pytest.mark.parametrize(
    'value',
    [
        {'a': (1,), 'b': [], 'c': None, 'd': {}, 'e': 'it\'s "so"'},
        {'not a name': {'x': 1.5}, 'y': [{'type': 'A', 'lr': 1e-7}, {'type': 'B', 'keys': {'a.b': (1, 2)}}]},
        {'long': ['x' * 30] * 9, 'deep': {'a': {'b': {'c': {'d': list(range(60))}}}}},
    ],
)
def test_written_values_read_the_same(value):
    text = written(value)
    assert eval(text) == value
    assert max(map(len, text.splitlines())) <= 120


def test_difference_says_what_changed_and_no_more():
    old = {'a': 1, 'b': {'type': 'X', 'p': 1, 'q': 2}, 'c': {'x': {'y': [1, 2]}, 'z': 0}}
    new = {'a': 1, 'b': {'type': 'Y', 'p': 1}, 'c': {'x': {'y': (1, 2)}, 'z': 0}, 'd': None}
    assert difference(old, new) == {'b': {'_delete_': True, 'type': 'Y', 'p': 1}, 'c': {'x': {'y': (1, 2)}}, 'd': None}


@pytest.mark.parametrize(
    'text',
    [
        f"_base_ = '{FASTER}'\ncustom_imports = dict(imports=['collections'], allow_failed_imports=False)\n",
        f"_base_ = '{FASTER}'\nmodel = dict(neck=dict(_delete_=True, type='mmdet.PAFPN', "
        'in_channels=[256, 512, 1024, 2048], out_channels=64, num_outs=5), '
        'rpn_head=dict(in_channels=64), '
        'roi_head=dict(bbox_roi_extractor=dict(out_channels=64), bbox_head=dict(in_channels=64)))\n',
        f"_base_ = '{FASTER}'\nmodel = dict(backbone=dict(_delete_=True, _scope_='mmpretrain', type='ResNet', "
        'depth=18, out_indices=(0, 1, 2, 3)), neck=dict(in_channels=[64, 128, 256, 512]))\n',
        f"_base_ = '{FASTER}'\nlr = 0.01\noptim_wrapper = dict(optimizer=dict(lr=lr))\n"
        'widths = [256, 512, 1024, 2048]\nmodel = dict(neck=dict(in_channels=widths))\n',
        f"_base_ = '{FASTER}'\nmodel = dict(backbone=dict(with_cp=True), neck=dict(in_channels={{{{_base_.model.neck.in_channels}}}}))\n",  # noqa: E501
        f"_base_ = '{PSP}'\nmodel = dict(data_preprocessor={{{{_base_.data_preprocessor}}}}, pretrained='open-mmlab://x')\n",
        TINY,
    ],
    ids=['custom_imports', '_delete_', '_scope_', 'variables', 'base variables', 'pretrained', 'own'],
)
@pytest.mark.usefixtures('small_images')
def test_awkward_configs_and_their_children(tmp_path, text, capsys):
    config = child_of(tmp_path, text)
    out = tmp_path / 'sub' / 'new.py'
    main([config, '--backbone', 'swin_t', '-o', str(out), '--size', '64'])
    assert "_base_ = '../mine.py'" in out.read_text()
    assert [*out.parent.iterdir()] == [out]
    wanted = swapped(config)
    read = Config.fromfile(str(out))
    assert unscoped(read.to_dict()) == unscoped(wanted.to_dict())
    assert read.get('custom_imports') == load_config(config).get('custom_imports')
    if 'with_cp' in text:
        assert read.model.backbone.with_cp
    table = capsys.readouterr().out
    assert 'SwinTransformer tiny' in table
    assert 'Written: ' in table


@pytest.mark.usefixtures('small_images')
def test_python_style_config(tmp_path, capsys):
    text = TINY.replace("type='ImageClassifier'", 'type=ImageClassifier').replace("type='ResNet'", 'type=ResNet')
    config = child_of(tmp_path, f'from mmpretrain.models import ImageClassifier, ResNet\n{text}')
    out = tmp_path / 'new.py'
    main([config, '--backbone', 'swin_t', '-o', str(out)])
    assert 'from .mine import *' in out.read_text()
    cfg = Config.fromfile(str(out))
    assert cfg.model.backbone.type == 'mmext_backbones.SwinTransformer'
    assert 'depth' not in cfg.model.backbone
    assert cfg.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(1e-3 * 256 / 1024)
    assert cfg.optim_wrapper.clip_grad == {'max_norm': 5.0}
    forward(build_model(cfg), (64, 64))


@pytest.mark.usefixtures('small_images')
def test_written_child_of_an_installed_config_trains(tmp_path):
    out = tmp_path / 'new.py'
    main(['mmpretrain::resnet/resnet18_8xb32_in1k.py', '--backbone', 'sequencer_s', '-o', str(out), '--size', '64'])
    assert "_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'" in out.read_text()
    cfg = Config.fromfile(str(out))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmpretrain.structures import DataSample

        model = build_model(cfg).train()
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
        data = {'inputs': torch.zeros(2, 3, 64, 64), 'data_samples': [DataSample().set_gt_label(i) for i in range(2)]}
        losses = model.train_step(data, optimizer)
    assert torch.isfinite(losses['loss'])


# --------------------------------------------------------------------------------------------------------------------
# The command


@pytest.mark.usefixtures('small_images')
def test_existing_output_is_refused_without_force(tmp_path, capsys):
    config = child_of(tmp_path, TINY)
    out = child_of(tmp_path, 'precious', 'new.py')
    with pytest.raises(UserError, match='exists already'):
        main([config, '--backbone', 'swin_t', '-o', out])
    assert Path(out).read_text() == 'precious'
    main([config, '--backbone', 'swin_t', '-o', out, '--force', '--size', '64'])
    assert 'SwinTransformer' in Path(out).read_text()
    with pytest.raises(UserError, match='is the config itself'):
        main([config, '--backbone', 'swin_t', '-o', config, '--force'])


@pytest.mark.usefixtures('small_images')
def test_check_writes_nothing(tmp_path, monkeypatch, capsys):
    config = child_of(tmp_path, TINY)
    monkeypatch.chdir(tmp_path)
    main([config, '--backbone', 'swin_t', '--check', '--size', '64'])
    assert 'runs with swin_t; nothing was written' in capsys.readouterr().out
    assert [path.name for path in tmp_path.glob('*.py')] == ['mine.py']


def test_a_model_that_does_not_run_is_not_written(tmp_path):
    text = TINY.replace("type='LinearClsHead'", "type='StackedLinearClsHead', mid_channels=[8]")
    config = child_of(tmp_path, text)
    new = swapped(config)
    new.model.head.in_channels = 77
    with pytest.raises(UserError, match='does not run: RuntimeError'):
        check(config, load_config(config), new)


@pytest.mark.parametrize(
    ('text', 'message'),
    [('model = dict(\nfoo bar', 'mine.py'), ("_base_ = 'gone.py'", 'gone.py')],
)
def test_unreadable_config(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        main([child_of(tmp_path, text), '--backbone', 'swin_t', '-o', str(tmp_path / 'new.py')])


def test_refusal_of_the_command(tmp_path):
    with pytest.raises(UserError, match='takes no swin_t: SSDVGG'):
        main(['mmdet::ssd/ssd300_coco.py', '--backbone', 'swin_t', '-o', str(tmp_path / 'new.py')])
    with pytest.raises(UserError, match="Did you mean 'swin_t'"):
        main([FASTER, '--backbone', 'swim_t'])


def test_tool_is_the_module(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['swap_backbone.py', FASTER, '--backbone', 'swim_t'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(Path(__file__).parents[1] / 'tools' / 'swap_backbone.py'), run_name='__main__')
    assert end.value.code == 2
    assert "Did you mean 'swin_t'?" in capsys.readouterr().err
