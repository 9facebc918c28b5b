"""Every leaf under configs/: its name, its depth, its size, and the numbers of the published recipe."""

import ast
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR as LinearLRScheduler
from mmengine.optim import PolyLR, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

CONFIGS = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(CONFIGS.glob('*.py'))
COCO = [leaf for leaf in LEAVES if re.search('maskrcnn|cascade', leaf.stem)]
MASK_RCNN = [leaf for leaf in LEAVES if 'maskrcnn' in leaf.stem]
CASCADE = [leaf for leaf in LEAVES if 'cascade' in leaf.stem]
SEGMENTATION = [leaf for leaf in LEAVES if 'upernet' in leaf.stem]

BACKBONES = {'elsa_swin': 'ELSASwin', 'swin': 'SwinTransformer', 'maxvit': 'MaxViT', 'sequencer': 'Sequencer2D'}
CHANNELS = {
    'ELSASwin': [96, 192, 384, 768],
    'SwinTransformer': [96, 192, 384, 768],
    'MaxViT': [64, 128, 256, 512],
    'Sequencer2D': [192, 192, 384, 384],
}
WIDE = [128, 256, 512, 1024]  # Swin-B
# recipe -> rate, from the authors' configs
DROP_PATH = {
    'swin_t': {'maskrcnn_1x': 0.1, 'maskrcnn_3x': 0.2, 'cascade_1x': 0.0, 'cascade_3x': 0.2, 'upernet_160k': 0.3},
    'swin_s': {'maskrcnn_3x': 0.2, 'cascade_3x': 0.2, 'upernet_160k': 0.3},
    'swin_b': {'cascade_3x': 0.3, 'upernet_160k': 0.3},
    'elsa_swin_t': {'maskrcnn_1x': 0.1, 'maskrcnn_3x': 0.2, 'cascade_1x': 0.0, 'cascade_3x': 0.2, 'upernet_160k': 0.3},
    'elsa_swin_s': {
        'maskrcnn_1x': 0.2,
        'maskrcnn_3x': 0.75,
        'cascade_1x': 0.2,
        'cascade_3x': 0.75,
        'upernet_160k': 0.3,
    },
}
# where nobody published the recipe, and the leaf says so: of another network, or of the same one on ImageNet
ASSUMED = {'maxvit_t': 0.2, 'sequencer_s': 0.1, 'swin_s': 0.2}
SIZES = {'t': 'tiny', 's': 'small', 'b': 'base', 'l': 'large', 'm': 'medium'}
RECIPES = ('maskrcnn_1x', 'maskrcnn_3x', 'cascade_1x', 'cascade_3x', 'upernet_160k', 'in1k')
NAME = re.compile(rf'({"|".join(BACKBONES)})_({"|".join(SIZES)})_({"|".join(RECIPES)})')

by_name = pytest.mark.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)
coco = pytest.mark.parametrize('leaf', COCO, ids=lambda leaf: leaf.stem)
mask_rcnn = pytest.mark.parametrize('leaf', MASK_RCNN, ids=lambda leaf: leaf.stem)
cascade = pytest.mark.parametrize('leaf', CASCADE, ids=lambda leaf: leaf.stem)
segmentation = pytest.mark.parametrize('leaf', SEGMENTATION, ids=lambda leaf: leaf.stem)


def load(leaf: Path) -> Config:
    pytest.importorskip('mmdet' if 'rcnn' in leaf.stem or 'cascade' in leaf.stem else 'mmseg')
    return Config.fromfile(leaf)


def backbone_class(cfg: Config) -> str:
    return cfg.model.backbone.type.rpartition('.')[2]


def channels_of(cfg: Config) -> list[int]:
    return WIDE if cfg.model.backbone.arch == 'base' else CHANNELS[backbone_class(cfg)]


def bases(path: Path) -> list[str]:
    for node in ast.parse(re.sub(r'\{\{(.+?)\}\}', "'...'", path.read_text())).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            value = ast.literal_eval(node.value)
            return [value] if isinstance(value, str) else value
    return []


def depth(path: Path) -> int:
    """Steps of inheritance under a file, those into an installed library included."""
    steps = [1 if '::' in base else 1 + depth(path.parent / base) for base in bases(path)]
    return max(steps, default=0)


def test_there_are_leaves():
    names = {leaf.stem for leaf in LEAVES}
    assert {f'{b}_{r}' for b in ('elsa_swin_t', 'swin_t', 'maxvit_t', 'sequencer_s') for r in RECIPES[::4]} <= names


@by_name
def test_heads_take_what_the_backbone_gives(leaf):
    cfg = load(leaf)
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    assert list(backbone.out_channels) == channels_of(cfg)
    assert backbone.out_strides == (4, 8, 16, 32)


@by_name
def test_pretrained_weights_are_of_the_same_network(leaf):
    """Every network whose ImageNet weights stand on the hub names them; ELSA's do not."""
    cfg = load(leaf)
    published = {
        'SwinTransformer': 'timm://swin_{arch}_patch4_window7_224.ms_in1k',
        'MaxViT': 'timm://maxvit_{arch}_tf_224.in1k',
        'Sequencer2D': 'timm://sequencer2d_{arch[0]}.in1k',
    }
    address = published.get(backbone_class(cfg))
    expected = address and {'type': 'Pretrained', 'checkpoint': address.format(arch=cfg.model.backbone.arch)}
    assert cfg.model.backbone.init_cfg == expected
    timm = pytest.importorskip('timm')
    if address:
        assert timm.models.get_pretrained_cfg(expected['checkpoint'].removeprefix('timm://')) is not None


@by_name
def test_name_is_made_of_the_closed_lists(leaf):
    match = NAME.fullmatch(leaf.stem)
    assert match
    backbone = load(leaf).model.backbone
    assert backbone.type == f'mmext_backbones.{BACKBONES[match.group(1)]}'
    assert backbone.arch == SIZES[match.group(2)]


@by_name
def test_leaf_is_small_and_flat(leaf):
    assert len(leaf.read_text().splitlines()) <= 20
    assert depth(leaf) <= 3


@pytest.mark.parametrize('path', sorted(CONFIGS.rglob('*.py')), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_no_logic_and_no_absolute_paths(path):
    tree = ast.parse(re.sub(r'\{\{(.+?)\}\}', "'...'", path.read_text()))
    assert all(isinstance(node, ast.Assign) for node in tree.body)
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert not [text for text in strings if text.startswith(('/', '~')) or re.match(r'(?!timm)\w+://', text)]


@by_name
def test_only_the_backbone_is_ours(leaf):
    """So that mmdet's and mmseg's own tools run it."""
    ours = re.findall(r'mmext_backbones[\w.]*', load(leaf).pretty_text)
    assert len(ours) == 1
    assert 'custom_imports' not in load(leaf)


# millions of parameters of the whole model, as the authors print them
PUBLISHED_PARAMETERS = {
    'elsa_swin_t': {'maskrcnn': 49, 'cascade': 86, 'upernet': 61},
    'elsa_swin_s': {'maskrcnn': 72, 'cascade': 110, 'upernet': 85},
    'swin_t': {'maskrcnn': 48, 'cascade': 86, 'upernet': 60},
    'swin_s': {'maskrcnn': 69, 'cascade': 107, 'upernet': 81},
    'swin_b': {'cascade': 145, 'upernet': 121},
}


@by_name
def test_builds_without_decay_where_the_recipe_says_so(leaf):
    cfg = load(leaf)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    network, head = re.fullmatch(r'(\w+_[a-z])_([a-z]+)_\w+', leaf.stem).groups()
    if network in PUBLISHED_PARAMETERS:
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert abs(millions - PUBLISHED_PARAMETERS[network][head]) < 1
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {names[id(p)]: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert decay.keys() == set(names.values())
    exempt = ('norm', 'relative_position_bias_table', 'absolute_pos_embed')
    expected = cfg.optim_wrapper.optimizer.weight_decay
    for name, value in decay.items():
        assert value == (0 if any(part in name for part in exempt) else expected), name
    if 'ELSA' in cfg.model.backbone.type:
        ghosts = [value for name, value in decay.items() if 'ghost_head' in name]
        assert ghosts == [expected] * {'tiny': 10, 'small': 22}[cfg.model.backbone.arch]
    assert {type(optimizer), optimizer.defaults['betas']} == {torch.optim.AdamW, (0.9, 0.999)}


@by_name
def test_drop_path_of_the_recipe(leaf):
    network, recipe = re.fullmatch(r'(\w+_[a-z])_([a-z]+_\w+)', leaf.stem).groups()
    rate = load(leaf).model.backbone.drop_path_rate
    if recipe in DROP_PATH.get(network, {}):
        assert rate == DROP_PATH[network][recipe]
    else:
        assert rate == ASSUMED[network]
        assert leaf.read_text().startswith('# Nobody published this recipe')


@coco
def test_coco_recipe(leaf):
    cfg = load(leaf)
    assert cfg.optim_wrapper.optimizer.lr == 1e-4
    assert cfg.optim_wrapper.optimizer.weight_decay == 0.05
    assert cfg.optim_wrapper.get('clip_grad') is None
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_size == 2
    warmup, steps = cfg.param_scheduler
    assert (warmup.type, warmup.start_factor, warmup.begin, warmup.end) == ('LinearLR', 0.001, 0, 500)
    epochs, milestones = {'1x': (12, [8, 11]), '3x': (36, [27, 33])}[leaf.stem[-2:]]
    assert (steps.type, steps.milestones, steps.gamma, steps.end) == ('MultiStepLR', milestones, 0.1, epochs)
    assert (steps.by_epoch, warmup.by_epoch) == (True, False)
    assert cfg.train_cfg.max_epochs == epochs


@coco
def test_coco_pipelines(leaf):
    cfg = load(leaf)
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == [
        'LoadImageFromFile', 'LoadAnnotations', 'RandomFlip', 'RandomChoice', 'PackDetInputs',
    ]  # fmt: skip
    assert pipeline[2].prob == 0.5
    (resize,), (shrink, crop, again) = pipeline[3].transforms
    assert pipeline[3].get('prob') is None  # equal chances
    assert resize.scales == [(side, 1333) for side in range(480, 801, 32)]
    assert resize.keep_ratio
    assert again == resize
    assert shrink.scales == [(400, 1333), (500, 1333), (600, 1333)]
    assert (crop.crop_type, crop.crop_size, crop.allow_negative_crop) == ('absolute_range', (384, 600), True)
    test = cfg.test_dataloader.dataset.pipeline
    assert [step.scale for step in test if step.type == 'Resize'] == [(1333, 800)]
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.pad_size_divisor == 32
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert preprocessor.bgr_to_rgb


@coco
def test_neck_and_anchors(leaf):
    cfg = load(leaf)
    model = cfg.model
    assert model.neck.in_channels == channels_of(cfg)
    anchors = model.rpn_head.anchor_generator
    assert (anchors.scales, anchors.ratios, anchors.strides) == ([8], [0.5, 1.0, 2.0], [4, 8, 16, 32, 64])


@cascade
def test_cascade_numbers(leaf):
    model = load(leaf).model
    heads, train, test = model.roi_head.bbox_head, model.train_cfg, model.test_cfg
    assert model.roi_head.stage_loss_weights == [1, 0.5, 0.25]
    stds = [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]]
    assert [head.bbox_coder.target_stds for head in heads] == stds
    for head in heads:
        assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
        assert (head.conv_out_channels, head.fc_out_channels, head.norm_cfg.type) == (256, 1024, 'SyncBN')
        assert (head.reg_class_agnostic, head.reg_decoded_bbox, head.num_classes) == (False, True, 80)
        assert (head.loss_bbox.type, head.loss_bbox.loss_weight) == ('GIoULoss', 10.0)
        assert (head.loss_cls.type, head.loss_cls.loss_weight) == ('CrossEntropyLoss', 1.0)
    for stage, threshold in zip(train.rcnn, (0.5, 0.6, 0.7), strict=True):
        assert (stage.assigner.pos_iou_thr, stage.assigner.neg_iou_thr) == (threshold, threshold)
        assert (stage.assigner.match_low_quality, stage.sampler.num, stage.sampler.pos_fraction) == (False, 512, 0.25)
    assert (model.rpn_head.loss_bbox.type, model.rpn_head.loss_bbox.beta) == ('SmoothL1Loss', 1 / 9)
    assert train.rpn.allowed_border == 0
    assert (train.rpn_proposal.nms_pre, train.rpn_proposal.max_per_img) == (2000, 2000)
    assert (test.rpn.nms_pre, test.rpn.max_per_img) == (1000, 1000)
    mask = model.roi_head.mask_head
    assert (mask.type, mask.num_convs, mask.conv_out_channels, mask.num_classes) == ('FCNMaskHead', 4, 256, 80)


@mask_rcnn
def test_mask_rcnn_numbers(leaf):
    cfg = load(leaf)
    model = cfg.model
    assert (model.neck.out_channels, model.neck.num_outs) == (256, 5)
    anchors = model.rpn_head.anchor_generator
    assert (anchors.scales, anchors.ratios, anchors.strides) == ([8], [0.5, 1.0, 2.0], [4, 8, 16, 32, 64])
    assert model.rpn_head.loss_bbox.type == 'L1Loss'
    box, mask = model.roi_head.bbox_head, model.roi_head.mask_head
    assert (box.type, box.fc_out_channels, box.reg_class_agnostic) == ('Shared2FCBBoxHead', 1024, False)
    assert (box.loss_bbox.type, box.num_classes) == ('L1Loss', 80)
    assert (mask.type, mask.num_convs, mask.conv_out_channels, mask.num_classes) == ('FCNMaskHead', 4, 256, 80)
    train, test = model.train_cfg, model.test_cfg
    assert train.rpn.allowed_border == -1
    proposal = train.rpn_proposal
    assert (proposal.nms_pre, proposal.max_per_img, proposal.nms.iou_threshold) == (2000, 1000, 0.7)
    rcnn = train.rcnn
    assert (rcnn.assigner.pos_iou_thr, rcnn.assigner.neg_iou_thr, rcnn.assigner.match_low_quality) == (0.5, 0.5, True)
    assert (rcnn.sampler.num, rcnn.sampler.pos_fraction, rcnn.mask_size) == (512, 0.25, 28)
    assert (test.rpn.nms_pre, test.rpn.max_per_img) == (1000, 1000)
    assert (test.rcnn.score_thr, test.rcnn.nms.iou_threshold, test.rcnn.max_per_img) == (0.05, 0.5, 100)


@segmentation
def test_ade20k_recipe(leaf):
    cfg = load(leaf)
    model = cfg.model
    channels = channels_of(cfg)
    assert (cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.optimizer.weight_decay) == (6e-5, 0.01)
    assert cfg.optim_wrapper.clip_grad is None
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_dataloader.batch_size == 2
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (160000, 16000)
    assert cfg.default_hooks.checkpoint.interval == 16000
    head, auxiliary = model.decode_head, model.auxiliary_head
    assert (head.type, head.in_channels, head.channels) == ('UPerHead', channels, 512)
    assert (head.pool_scales, head.dropout_ratio, head.num_classes) == ((1, 2, 3, 6), 0.1, 150)
    assert (auxiliary.type, auxiliary.in_index, auxiliary.channels) == ('FCNHead', 2, 256)
    assert auxiliary.in_channels == channels[2]
    assert (auxiliary.num_convs, auxiliary.concat_input, auxiliary.dropout_ratio) == (1, False, 0.1)
    assert auxiliary.num_classes == 150
    assert (head.loss_decode.loss_weight, auxiliary.loss_decode.loss_weight) == (1.0, 0.4)
    assert head.norm_cfg.type == auxiliary.norm_cfg.type == 'SyncBN'
    assert not head.align_corners
    assert not auxiliary.align_corners
    assert model.test_cfg.mode == 'whole'
    assert model.data_preprocessor.size == (512, 512)
    assert (model.data_preprocessor.pad_val, model.data_preprocessor.seg_pad_val) == (0, 255)


@segmentation
def test_ade20k_pipelines(leaf):
    cfg = load(leaf)
    train = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert list(train) == [
        'LoadImageFromFile', 'LoadAnnotations', 'RandomResize', 'RandomCrop', 'RandomFlip', 'PhotoMetricDistortion',
        'PackSegInputs',
    ]  # fmt: skip
    assert train['LoadAnnotations'].reduce_zero_label
    assert (train['RandomResize'].scale, train['RandomResize'].ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (train['RandomCrop'].crop_size, train['RandomCrop'].cat_max_ratio) == ((512, 512), 0.75)
    assert [s.scale for s in cfg.test_dataloader.dataset.pipeline if s.type == 'Resize'] == [(2048, 512)]
    resizes, flips = cfg.tta_pipeline[1].transforms[:2]
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert [(view.scale, view.keep_ratio) for view in resizes] == [((2048 * r, 512 * r), True) for r in ratios]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    assert cfg.tta_model.type == 'SegTTAModel'


@segmentation
def test_ade20k_learning_rate_is_the_authors(leaf):
    """Their decay runs from iteration 0 to 160000 and the warm-up of 1500 multiplies it."""
    cfg = load(leaf)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    classes = {'LinearLR': LinearLRScheduler, 'PolyLR': PolyLR}
    schedulers = []
    for entry in cfg.param_scheduler:
        entry = dict(entry)
        schedulers.append(classes[entry.pop('type')](optimizer, **entry))
    for iteration in range(3001):
        if iteration in (0, 700, 1499, 1500, 3000):
            warmup = 1 - (1 - min(iteration / 1500, 1)) * (1 - 1e-6)
            expected = warmup * (1 - iteration / 160000)
            # mmengine reaches the full rate one iteration before the end of its warm-up: 1 / 1500
            assert optimizer.param_groups[0]['lr'] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
