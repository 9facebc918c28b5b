"""Every family and every recipe runs: a training step, a prediction, its evaluator, on a few drawn shapes.

The networks are thin, and so are the layers inside the heads; everything else (structure, losses, pipelines, schedule,
hooks, evaluator) is the leaf's own.
"""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from mmext_backbones.config.editing import walk
from mmext_backbones.datasets.shapes.files import make_shapes
from mmext_backbones.engine import setup, train

CONFIGS = Path(__file__).parents[1] / 'configs'
NAME = re.compile(r'([a-z_]+?)_(t|s|m|b|l|xl|d[1-5])_(\w+)')
ARCHS = {
    'swin': {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)},
    'elsa_swin': {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8), 'group_width': 4},
    'maxvit': {'embed_dims': (32, 32, 64, 64), 'depths': (1, 1, 1, 1), 'stem_dims': 32},
    'sequencer': {'embed_dims': (16, 32, 32, 32), 'depths': (1, 1, 1, 1), 'hidden_dims': (4, 8, 8, 8)},
    'volo': {
        'embed_dims': (24, 48, 48, 48),
        'depths': (1, 1, 1, 1),
        'num_heads': (1, 2, 2, 2),
        'mlp_ratio': 3,
        'stem_dims': 8,
    },
}
ARCHS['elsa_volo'] = {**ARCHS['volo'], 'kernel_size': 5, 'group_width': 8}
CHANNELS = {
    'swin': [24, 48, 96, 192],
    'maxvit': [32, 32, 64, 64],
    'sequencer': [16, 16, 32, 32],
    'volo': [24, 24, 48, 48],
}
CHANNELS |= {'elsa_swin': CHANNELS['swin'], 'elsa_volo': CHANNELS['volo']}
WIDTHS = {'fc_out_channels': 64, 'conv_out_channels': 16, 'channels': 16}  # of the layers inside heads
BETWEEN = ('in_channels', 'out_channels', 'feat_channels')  # of a neck and its heads: 32 instead of 256
# every recipe, and every family with a detector, a segmenter and a classifier where it has them; of all pairs
# tests/test_configs.py has the numbers and builds the model. These with each family and each kind of recipe:
EVERY_DAY = (
    'swin_maskrcnn_1x', 'elsa_swin_cascade_3x', 'maxvit_upernet_160k', 'sequencer_retinanet_1x', 'sequencer_fpn_40k',
    'maxvit_in1k', 'maxvit_cascade_lsj',
)  # fmt: skip
OTHERS = (
    'swin_in1k', 'swin_upernet_160k_in22k', 'swin_upernet_160k_in22k_640', 'elsa_swin_in1k', 'elsa_swin_upernet_160k',
    'maxvit_cascade_lsj_640', 'sequencer_in1k', 'sequencer_maskrcnn_3x', 'volo_cascade_1x', 'volo_in1k',
    'volo_upernet_160k', 'elsa_volo_in1k', 'elsa_volo_upernet_160k',
)  # fmt: skip
ELSEWHERE = ('atss', 'sparsercnn', 'htc')  # tests/test_swin_detectors.py
METRIC = {'in1k': 'accuracy/top1', 'upernet': 'mIoU', 'fpn': 'mIoU', 'retinanet': 'coco/bbox_mAP'}


def leaves() -> dict[str, Path]:
    """Of every family and recipe the smallest size."""
    found = {}
    for size in ('t', 's', 'm', 'b', 'l', 'xl', 'd1'):
        for path in sorted(CONFIGS.glob('*.py')):
            family, its_size, recipe = NAME.fullmatch(path.stem).groups()
            if its_size == size and not recipe.startswith(ELSEWHERE):
                found.setdefault(f'{family}_{recipe}', path)
    return found


def library_of(recipe: str) -> str:
    return 'mmpretrain' if recipe == 'in1k' else 'mmseg' if recipe.startswith(('upernet', 'fpn')) else 'mmdet'


def test_every_recipe_and_every_family_in_each_library_run():
    recipes, families = ({name: NAME.fullmatch(leaf.stem)[i] for name, leaf in leaves().items()} for i in (3, 1))
    run = {*EVERY_DAY, *OTHERS}
    assert {recipes[name] for name in run} == set(recipes.values())
    tasks = {name: (families[name], library_of(recipes[name])) for name in recipes}
    assert {tasks[name] for name in run} == set(tasks.values())


def narrow(cfg: Config) -> dict[str, object]:
    """Options that make the layers of necks and heads thin."""
    options = {}
    for path, node in walk(cfg.model):
        for key, value in node.items():
            if key in WIDTHS:
                options[f'model.{path}.{key}'] = WIDTHS[key]
            elif key in BETWEEN and value in (256, [256] * 4):
                options[f'model.{path}.{key}'] = 32 if value == 256 else [32] * 4
    return options


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    path = tmp_path_factory.mktemp('shapes') / 'made'
    make_shapes(path, size=64, num_train=4, num_val=2)
    return path


@pytest.mark.parametrize('name', [*EVERY_DAY, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_trains_predicts_and_evaluates(name, shapes, tmp_path, monkeypatch):
    leaf = leaves()[name]
    family, _, recipe = NAME.fullmatch(leaf.stem).groups()
    library = library_of(recipe)
    pytest.importorskip(library)
    monkeypatch.setattr(setup, 'make_default_shapes', lambda: shapes)
    monkeypatch.chdir(tmp_path)

    cfg = Config.fromfile(leaf)
    channels = CHANNELS[family]
    options = narrow(cfg)
    assert options or recipe == 'in1k'
    options |= {'model.backbone.arch': ARCHS[family] | {'_delete_': True}, 'model.backbone.init_cfg': None}
    if cfg.model.get('neck') and 'in_channels' in cfg.model.neck:
        options['model.neck.in_channels'] = channels
    elif library == 'mmseg':
        options |= {'model.decode_head.in_channels': channels, 'model.auxiliary_head.in_channels': channels[2]}
    elif library == 'mmpretrain':
        options['model.head.in_channels'] = channels[-1]
    options |= {'train_cfg.max_iters': 1, 'train_dataloader.batch_size': 2, 'train_dataloader.num_workers': 0}
    options |= {'train_dataloader.persistent_workers': False}
    if recipe == 'cascade_lsj':
        options['model.data_preprocessor.pad_size_divisor'] = 128  # as small as the images; cascade_lsj_640 pads them
    if recipe == 'retinanet_1x':
        options['model.test_cfg.score_thr'] = 0.0  # its scores begin at 0.01, and no detection means no metric

    metrics = train.train(str(leaf), shapes=True, cfg_options=options, seed=0)
    assert METRIC.get(recipe.split('_')[0], 'coco/segm_mAP') in metrics
    assert 'loss' in (tmp_path / 'work_dirs' / f'{leaf.stem}_shapes' / 'curves.json').read_text()
