"""Every leaf under configs/: its name, its depth, its size, and the numbers of the published recipe."""

import ast
import copy
import functools
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
COCO = [leaf for leaf in LEAVES if re.search(r'(maskrcnn|cascade)_\dx', leaf.stem)]
MASK_RCNN = [leaf for leaf in LEAVES if 'maskrcnn' in leaf.stem]
CASCADE = [leaf for leaf in LEAVES if re.search(r'cascade_\dx', leaf.stem)]
LSJ = [leaf for leaf in LEAVES if 'lsj' in leaf.stem]
SEGMENTATION = [leaf for leaf in LEAVES if 'upernet' in leaf.stem]
CLASSIFICATION = [leaf for leaf in LEAVES if 'in1k' in leaf.stem]
DENSE = [leaf for leaf in LEAVES if leaf not in CLASSIFICATION]

BACKBONES = {
    'elsa_swin': 'ELSASwin',
    'swin': 'SwinTransformer',
    'maxvit': 'MaxViT',
    'sequencer': 'Sequencer2D',
    'elsa_volo': 'ELSAVOLO',
    'volo': 'VOLO',
}
SIZES = {'t': 'tiny', 's': 'small', 'm': 'medium', 'b': 'base', 'l': 'large', 'xl': 'xlarge'}
SIZES |= {f'd{i}': f'd{i}' for i in range(1, 6)}
COCO_RECIPES = ('maskrcnn_1x', 'maskrcnn_3x', 'cascade_1x', 'cascade_3x')
COMMON = (*COCO_RECIPES, 'upernet_160k', 'in1k')
# of which family and size there is which recipe
ZOO = {
    'swin_t': (*COMMON, 'atss_3x', 'sparsercnn_3x'),
    'swin_s': COMMON,
    **{
        f'swin_{size}': (*COMMON, 'upernet_160k_in22k', 'upernet_160k_in22k_640', htc)
        for size, htc in (('b', 'htc_6x'), ('l', 'htc_3x'))
    },
    **{f'elsa_swin_{size}': COMMON for size in 'tsb'},
    **{f'maxvit_{size}': (*COMMON, 'cascade_lsj', 'cascade_lsj_640') for size in 'tsb'},
    'maxvit_l': (*COMMON, 'cascade_lsj'),
    'maxvit_xl': COMMON,
    **{f'sequencer_{size}': (*COMMON, 'retinanet_1x', 'fpn_40k') for size in 'sml'},
    'volo_d1': ('maskrcnn_1x', 'cascade_1x', 'upernet_160k', 'in1k'),
    **{f'volo_d{i}': ('upernet_160k', 'in1k') for i in range(2, 6)},
    'elsa_volo_d1': ('upernet_160k', 'in1k'),
}
RECIPES = sorted({recipe for recipes in ZOO.values() for recipe in recipes}, key=len, reverse=True)
NAME = re.compile(rf'({"|".join(BACKBONES)})_({"|".join(SIZES)})_({"|".join(RECIPES)})')
CHANNELS = {
    'swin': {'t': 96, 's': 96, 'b': 128, 'l': 192},  # of the first map; each following one has twice as many
    'elsa_swin': {'t': 96, 's': 96, 'b': 128},
    'maxvit': {'t': 64, 's': 96, 'b': 96, 'l': 128, 'xl': 192},
}
# network -> recipe -> rate, from the authors' configs and papers
_TINY = {'maskrcnn_1x': 0.1, 'maskrcnn_3x': 0.2, 'cascade_1x': 0.0, 'cascade_3x': 0.2, 'upernet_160k': 0.3}
DROP_PATH = {
    'swin_t': {**_TINY, 'in1k': 0.2, 'atss_3x': 0.2, 'sparsercnn_3x': 0.2},
    'swin_s': {'maskrcnn_3x': 0.2, 'cascade_3x': 0.2, 'upernet_160k': 0.3, 'in1k': 0.3},
    'swin_b': {'cascade_3x': 0.3, 'htc_6x': 0.3, 'upernet_160k': 0.3, 'upernet_160k_in22k': 0.3, 'in1k': 0.5},
    'swin_l': {'upernet_160k_in22k': 0.3, 'in1k': 0.2, 'htc_3x': 0.2},  # of HTC++ assumed, after CBNetV2
    'elsa_swin_t': {**_TINY, 'in1k': 0.1},
    'elsa_swin_s': {
        'maskrcnn_1x': 0.2,
        'maskrcnn_3x': 0.75,
        'cascade_1x': 0.2,
        'cascade_3x': 0.75,
        'upernet_160k': 0.3,
        'in1k': 0.3,
    },
    'elsa_swin_b': {'in1k': 0.5},
    'maxvit_t': {'in1k': 0.2, 'cascade_lsj_640': 0.7},
    'maxvit_s': {'in1k': 0.3, 'cascade_lsj': 0.5},
    'maxvit_b': {'in1k': 0.4},
    'maxvit_l': {'in1k': 0.6, 'cascade_lsj': 0.8},
    'maxvit_xl': {'in1k': 0.7},
    'sequencer_s': {'in1k': 0.1},
    'volo_d1': {'in1k': 0.1},
    'volo_d2': {'in1k': 0.2},
    'volo_d3': {'in1k': 0.5},
}
# where nobody published the rate, and the leaf says so
ASSUMED = {
    'swin_s': 0.2,
    'swin_b': 0.3,
    'swin_l': 0.3,
    'elsa_swin_b': 0.3,
    'maxvit_t': 0.2,
    'maxvit_s': 0.3,
    'maxvit_b': 0.4,
    'maxvit_l': 0.6,
    'maxvit_xl': 0.7,
    'sequencer_s': 0.1,
    'sequencer_m': 0.2,
    'sequencer_l': 0.4,
    'volo_d1': 0.1,
    'volo_d2': 0.2,
    'volo_d3': 0.5,
    'volo_d4': 0.5,
    'volo_d5': 0.5,
    'elsa_volo_d1': 0.1,
}
ASSUMED_LSJ = {'maxvit_t': 0.7, 'maxvit_s': 0.5, 'maxvit_b': 0.5}
SAYS_SO = re.compile(r'[Nn]obody published|assumed|[Pp]ublished without|(not|were) published')

by_name = pytest.mark.parametrize('leaf', LEAVES, ids=lambda leaf: leaf.stem)
each_built = pytest.mark.parametrize(  # of every family and recipe the smallest size, and with all tests the others
    'leaf',
    [
        pytest.param(leaf, marks=[] if re.search(r'(_t|sequencer_s|in22k.*)(_|$)', leaf.stem) else pytest.mark.slow)
        for leaf in LEAVES
    ],
    ids=lambda leaf: leaf.stem,
)
dense = pytest.mark.parametrize('leaf', DENSE, ids=lambda leaf: leaf.stem)
coco = pytest.mark.parametrize('leaf', COCO, ids=lambda leaf: leaf.stem)
mask_rcnn = pytest.mark.parametrize('leaf', MASK_RCNN, ids=lambda leaf: leaf.stem)
cascade = pytest.mark.parametrize('leaf', CASCADE, ids=lambda leaf: leaf.stem)
lsj = pytest.mark.parametrize('leaf', LSJ, ids=lambda leaf: leaf.stem)
segmentation = pytest.mark.parametrize('leaf', SEGMENTATION, ids=lambda leaf: leaf.stem)
classification = pytest.mark.parametrize('leaf', CLASSIFICATION, ids=lambda leaf: leaf.stem)


@functools.cache
def parsed(leaf: Path) -> Config:
    return Config.fromfile(leaf)


def load(leaf: Path) -> Config:
    pytest.importorskip('mmdet' if leaf in COCO + LSJ else 'mmpretrain' if leaf in CLASSIFICATION else 'mmseg')
    return parsed(leaf)


def parts(leaf: Path) -> tuple[str, str, str]:
    """Family, size and recipe."""
    return NAME.fullmatch(leaf.stem).groups()


def channels_of(leaf: Path) -> list[int]:
    family, size, _ = parts(leaf)
    if family == 'sequencer':
        return [192, 192, 384, 384]
    if family in ('volo', 'elsa_volo'):
        first = {'d1': 192, 'd2': 256, 'd3': 256, 'd4': 384, 'd5': 384}[size]
        return [first, first, 2 * first, 2 * first]
    return [CHANNELS[family][size] * 2**i for i in range(4)]


def crop_of(leaf: Path) -> int:
    return 640 if leaf.stem.endswith('640') else 512


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


def test_the_zoo_is_whole_and_its_names_are_made_of_closed_lists():
    assert {leaf.stem for leaf in LEAVES} == {f'{network}_{recipe}' for network in ZOO for recipe in ZOO[network]}


@by_name
def test_name_says_what_the_backbone_is(leaf):
    family, size, _ = parts(leaf)
    backbone = load(leaf).model.backbone
    assert backbone.type == f'mmext_backbones.{BACKBONES[family]}'
    assert backbone.arch == SIZES[size]


@dense
def test_heads_take_what_the_backbone_gives(leaf):
    cfg = load(leaf)
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    assert list(backbone.out_channels) == channels_of(leaf)
    assert backbone.out_strides == (4, 8, 16, 32)
    if leaf not in SEGMENTATION:
        assert cfg.model.neck.in_channels == channels_of(leaf)


@by_name
def test_pretrained_weights_are_of_the_same_network(leaf):
    """Every network whose ImageNet weights stand on the hub names them; ELSA's do not, and training on ImageNet-1K
    starts from nothing but where only weights of a larger ImageNet were published."""
    family, size, recipe = parts(leaf)
    backbone = load(leaf).model.backbone
    arch = SIZES[size]
    published = {
        'swin': f'swin_{arch}_patch4_window7_224.ms_in1k',
        'maxvit': f'maxvit_{arch}_tf_224.in1k',
        'sequencer': f'sequencer2d_{size}.in1k',
        'volo': f'volo_{size}_224.sail_in1k',
    }
    larger = {'swin_l': 'swin_large_patch4_window7_224.ms_in22k', 'maxvit_xl': 'maxvit_xlarge_tf_224.in21k'}
    address = larger.get(f'{family}_{size}', published.get(family) if recipe != 'in1k' else None)
    if 'in22k' in recipe or 'htc' in recipe:
        window, edge = (7, 224) if recipe.endswith('640') or 'htc' in recipe else (12, 384)
        address = f'swin_{arch}_patch4_window{window}_{edge}.ms_in22k'
        assert backbone.get('window_size', 7) == window
    expected = address and {'type': 'Pretrained', 'checkpoint': f'timm://{address}'}
    assert backbone.get('init_cfg') == expected
    timm = pytest.importorskip('timm')
    if address:
        weights = timm.models.get_pretrained_cfg(address)
        assert weights is not None
        preprocessor = load(leaf).model.data_preprocessor
        assert preprocessor.mean == pytest.approx([255 * x for x in weights.mean])
        assert preprocessor.std == pytest.approx([255 * x for x in weights.std])


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
def test_little_but_the_backbone_is_ours(leaf):
    """So that mmdet's, mmseg's and mmpretrain's own tools run it."""
    ours = {name.partition('.')[2] for name in re.findall(r'mmext_backbones[\w.]*', repr(load(leaf).to_dict()))}
    expected = {BACKBONES[parts(leaf)[0]]}
    if leaf in COCO:
        expected.add('InstanceTTAModel')
    if 'htc' in leaf.stem:
        expected.add('GlobalBlockNeck')
    if leaf in CLASSIFICATION:
        expected |= {'ImageClassifier'} | {
            head
            for name, head in (('maxvit', 'MaxViTClsHead'), ('sequencer', 'SequencerClsHead'), ('volo', 'VOLOClsHead'))
            if name in leaf.stem
        }
    assert ours == expected
    assert 'custom_imports' not in load(leaf)


# millions of parameters of the whole model, as the authors print them
PUBLISHED_PARAMETERS = {
    'elsa_swin_t': {'maskrcnn': 49, 'cascade': 86, 'upernet': 61, 'in1k': 29},
    'elsa_swin_s': {'maskrcnn': 72, 'cascade': 110, 'upernet': 85, 'in1k': 53},
    'swin_t': {'maskrcnn': 48, 'cascade': 86, 'upernet': 60, 'in1k': 28, 'atss': 36, 'sparsercnn': 110},
    'swin_s': {'maskrcnn': 69, 'cascade': 107, 'upernet': 81, 'in1k': 50},
    'swin_b': {'cascade': 145, 'upernet': 121, 'in1k': 88, 'htc': 160},
    'swin_l': {'upernet': 234, 'in1k': 197, 'htc': 284},
    'elsa_swin_b': {'in1k': 93},
    'maxvit_t': {'in1k': 31},
    'maxvit_s': {'in1k': 69},
    'maxvit_b': {'in1k': 119},
    'maxvit_l': {'in1k': 212},
    'maxvit_xl': {'in1k': 475},
    'sequencer_s': {'in1k': 28},
    'sequencer_m': {'in1k': 38},
    'sequencer_l': {'in1k': 54},
    **{f'volo_d{i}': {'in1k': millions} for i, millions in enumerate((27, 59, 86, 193, 296), 1)},
}


@each_built
def test_builds_without_decay_where_the_recipe_says_so(leaf):
    cfg = load(leaf)
    family, size, recipe = parts(leaf)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer
    published = PUBLISHED_PARAMETERS.get(f'{family}_{size}', {}).get(recipe.split('_')[0])
    if published and 'lsj' not in recipe:
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        assert abs(millions - published) < 1
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    decay = {names[id(p)]: group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert decay.keys() == parameters.keys()
    expected = cfg.optim_wrapper.optimizer.weight_decay
    for name, value in decay.items():
        exempt = any(part in name for part in ('norm', 'relative_position_bias_table', 'absolute_pos_embed'))
        exempt = exempt or name == 'head.cls_token'
        if recipe == 'in1k':  # all vectors, too
            exempt = exempt or parameters[name].dim() == 1
        assert value == (0 if exempt else expected), name
    if family == 'elsa_swin':
        ghosts = [value for name, value in decay.items() if 'ghost_head' in name]
        assert ghosts == [expected] * {'t': 10, 's': 22, 'b': 22}[size]
    assert {type(optimizer), optimizer.defaults['betas']} == {torch.optim.AdamW, (0.9, 0.999)}


@by_name
def test_drop_path_of_the_recipe(leaf):
    family, size, recipe = parts(leaf)
    network = f'{family}_{size}'
    rate = load(leaf).model.backbone.drop_path_rate
    if recipe in DROP_PATH.get(network, {}):
        assert rate == DROP_PATH[network][recipe]
    else:
        assert rate == (ASSUMED_LSJ if 'lsj' in recipe else ASSUMED)[network]
        assert SAYS_SO.search(leaf.read_text())


@lsj
def test_lsj_recipe(leaf):
    """The published protocol, which is not Swin's."""
    cfg = load(leaf)
    size = 640 if leaf.stem.endswith('640') else 896
    assert cfg.model.backbone.window_size == 'scaled'
    assert cfg.model.data_preprocessor.pad_size_divisor == size
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    resize, crop = steps['RandomResize'], steps['RandomCrop']
    assert (resize.scale, resize.ratio_range, resize.keep_ratio) == ((size, size), (0.1, 2.5), True)
    assert crop.crop_size == (size, size)
    assert steps['RandomFlip'].prob == 0.5
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert [step.scale for step in loader.dataset.pipeline if step.type == 'Resize'] == [(size, size)]
    model = cfg.model
    assert model.neck.start_level == 1
    anchors = model.rpn_head.anchor_generator
    assert (anchors.octave_base_scale, anchors.scales_per_octave) == (3, 3)
    assert anchors.strides == [8, 16, 32, 64, 128]
    assert model.rpn_head.num_convs == 2
    assert [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn] == [0.6, 0.7]
    assert all(head.reg_class_agnostic for head in model.roi_head.bbox_head)
    assert model.roi_head.num_stages == len(model.roi_head.bbox_head) == 2
    published = {'maxvit_t_cascade_lsj_640': (2e-3, 1e-4)}
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == published.get(leaf.stem, (3e-3, 0.05))
    warmup, cosine = cfg.param_scheduler
    assert (warmup.end, cosine.eta_min_ratio) == (6000, 0.03)
    assert cfg.train_cfg.max_iters == cosine.end == 92600
    assert cfg.auto_scale_lr.base_batch_size == 256
    (average,) = cfg.custom_hooks
    assert (average.type, average.momentum) == ('EMAHook', pytest.approx(1 - 0.9998))


# learning rate, images an iteration, warm-up epochs, epochs, largest norm of the gradient, average, mixes, crop
IN1K = {
    'swin': (1e-3, 1024, 20, 300, 5.0, None, ['Mixup', 'CutMix'], 248),
    'elsa_swin': (1e-3, 1024, 20, 310, 5.0, None, ['Mixup', 'CutMix'], 248),
    'elsa_swin_b': (1e-3, 1024, 20, 310, 5.0, 0.99992, ['Mixup', 'CutMix'], 248),
    'maxvit': (3e-3, 4096, None, 300, 1.0, 0.9999, ['Mixup'], 235),
    'sequencer': (2e-3, 2048, 20, 300, None, None, ['Mixup', 'CutMix'], 256),
    'swin_l': (4e-5, 1024, 5, 30, 5.0, None, ['Mixup', 'CutMix'], 248),
    'volo': (1.6e-3, 1024, 20, 310, None, None, ['CutMix'], 233),
    **dict.fromkeys(('volo_d2', 'volo_d3'), (1e-3, 1024, 20, 310, None, None, ['CutMix'], 233)),
    **dict.fromkeys(('volo_d4', 'volo_d5'), (8e-4, 1024, 20, 310, None, None, ['CutMix'], 233)),
    'elsa_volo': (1.6e-3, 1024, 20, 310, None, None, ['CutMix'], 233),
    'maxvit_xl': (5e-5, 512, None, 30, 1.0, None, ['Mixup', 'CutMix'], 384),
}


@classification
def test_in1k_recipe(leaf):
    cfg = load(leaf)
    family, size, _ = parts(leaf)
    expected = IN1K.get(f'{family}_{size}', IN1K[family])
    (clip,) = (cfg.optim_wrapper.get('clip_grad') or {'max_norm': None}).values()
    average = cfg.get('custom_hooks') and pytest.approx(1 - cfg.custom_hooks[0].momentum)
    warmup = cfg.param_scheduler[0].end if cfg.param_scheduler[0].get('by_epoch') else None
    warmup = warmup if cfg.param_scheduler[0].type == 'LinearLR' else None
    edges = [step.scale for step in cfg.test_dataloader.dataset.pipeline if 'Resize' in step.type]
    assert edges == [expected[-1]]
    got = (cfg.optim_wrapper.optimizer.lr, cfg.auto_scale_lr.base_batch_size, warmup, cfg.train_cfg.max_epochs)
    assert got == expected[:4]
    assert clip == expected[4]
    assert average == expected[5]
    assert [mix.type for mix in cfg.model.train_cfg.augments] == expected[6]
    assert cfg.model.head.loss.label_smooth_val == 0.1
    assert cfg.optim_wrapper.optimizer.weight_decay == (1e-8 if cfg.train_cfg.max_epochs == 30 else 0.05)


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
    scales, flips = cfg.tta_pipeline[1].transforms[:2]
    assert len({view.scale for view in scales}) > 1
    assert {flip.prob for flip in flips} == {0.0, 1.0}
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.pad_size_divisor == 32
    assert preprocessor.bgr_to_rgb


@coco
def test_neck_and_anchors(leaf):
    cfg = load(leaf)
    model = cfg.model
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
    channels = channels_of(leaf)
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
    assert model.data_preprocessor.size == (crop_of(leaf), crop_of(leaf))
    assert (model.data_preprocessor.pad_val, model.data_preprocessor.seg_pad_val) == (0, 255)


@segmentation
def test_ade20k_pipelines(leaf):
    cfg, size = load(leaf), crop_of(leaf)
    train = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert list(train) == [
        'LoadImageFromFile', 'LoadAnnotations', 'RandomResize', 'RandomCrop', 'RandomFlip', 'PhotoMetricDistortion',
        'PackSegInputs',
    ]  # fmt: skip
    assert train['LoadAnnotations'].reduce_zero_label
    assert (train['RandomResize'].scale, train['RandomResize'].ratio_range) == ((4 * size, size), (0.5, 2.0))
    assert (train['RandomCrop'].crop_size, train['RandomCrop'].cat_max_ratio) == ((size, size), 0.75)
    assert [s.scale for s in cfg.test_dataloader.dataset.pipeline if s.type == 'Resize'] == [(4 * size, size)]
    resizes, flips = cfg.tta_pipeline[1].transforms[:2]
    ratios = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert [(view.scale, view.keep_ratio) for view in resizes] == [((4 * size * r, size * r), True) for r in ratios]
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


def test_retinanet_and_semantic_fpn_recipes():
    """The protocol of Sequencer's authors for other networks."""
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    cfg = parsed(CONFIGS / 'sequencer_s_retinanet_1x.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, cfg.auto_scale_lr.base_batch_size) == (1e-4, 0.05, 16)
    assert (cfg.train_cfg.max_epochs, cfg.param_scheduler[1].milestones) == (12, [8, 11])
    assert (cfg.model.type, cfg.model.neck.start_level, cfg.model.neck.num_outs) == ('RetinaNet', 1, 5)

    cfg = parsed(CONFIGS / 'sequencer_s_fpn_40k.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay, cfg.auto_scale_lr.base_batch_size) == (2e-4, 1e-4, 32)
    (decay,) = cfg.param_scheduler
    assert (cfg.train_cfg.max_iters, decay.type, decay.power, decay.end) == (40000, 'PolyLR', 0.9, 40000)
    head = cfg.model.decode_head
    assert (head.type, head.num_classes, head.feature_strides) == ('FPNHead', 150, [4, 8, 16, 32])
    assert (cfg.train_dataloader.batch_size, cfg.model.data_preprocessor.size) == (4, (512, 512))
