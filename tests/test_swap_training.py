"""A swapped config in the hands of its own library: mmdet's and mmsegmentation's tools train and test it.

The tools run in processes of their own, in a folder that holds a user's two configs and a data set. Neither config
names this package but in the type of the backbone.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from mmext_backbones.datasets.shapes.files import SEMANTIC_CLASSES, make_shapes
from mmext_backbones.datasets.shapes.scenes import CLASSES
from mmext_backbones.swap import __main__ as swap

ROOT = Path(__file__).parents[1]

# What a person writes on top of the swapped config: the data, the classes, a short schedule, the CPU; here, few blocks.
DETECTION = f"""
_base_ = 'swapped.py'
metainfo = dict(classes={CLASSES})
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
meta_keys = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
train_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(
        data_root='data', ann_file='annotations/instances_train.json', data_prefix=dict(img='train'),
        metainfo=metainfo, pipeline=[*load, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')]))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(
        data_root='data', ann_file='annotations/instances_val.json', data_prefix=dict(img='val'),
        metainfo=metainfo, pipeline=[*load, resize, dict(type='PackDetInputs', meta_keys=meta_keys)]))
test_dataloader = val_dataloader
# classes are not learnt in two iterations, so boxes are found without them
val_evaluator = dict(ann_file='data/annotations/instances_val.json', metric='proposal')
test_evaluator = val_evaluator
model = dict(
    backbone=dict(arch=dict(
        _delete_=True, embed_dims=(192, 384, 384, 384), depths=(1, 1, 1, 1), hidden_dims=(48, 96, 96, 96))),
    roi_head=dict(bbox_head=dict(num_classes={len(CLASSES)}, fc_out_channels=32)),
    test_cfg=dict(rcnn=dict(score_thr=0.0)))
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_optimizer=False))
"""
SEGMENTATION = f"""
_base_ = 'swapped.py'
metainfo = dict(classes={SEMANTIC_CLASSES}, palette=[[40 * i] * 3 for i in range({len(SEMANTIC_CLASSES)})])
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
data = dict(
    _delete_=True, type='BaseSegDataset', data_root='data', img_suffix='.png', seg_map_suffix='.png',
    metainfo=metainfo, reduce_zero_label=True)
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(
        data_prefix=dict(img_path='train', seg_map_path='semantic/train'),
        pipeline=[*load, dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')], **data))
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(
        data_prefix=dict(img_path='val', seg_map_path='semantic/val'),
        pipeline=[*load, dict(type='PackSegInputs')], **data))
test_dataloader = val_dataloader
norm_cfg = dict(type='BN', requires_grad=True)
head = dict(num_classes={len(SEMANTIC_CLASSES)}, channels=32, norm_cfg=norm_cfg)
backbone = dict(arch=dict(_delete_=True, embed_dims=(64, 128, 256, 512), depths=(1, 1, 1, 1), stem_dims=64))
model = dict(
    data_preprocessor=dict(size=(64, 64)), backbone=backbone, decode_head=head, auxiliary_head=head)
param_scheduler = []
optim_wrapper = dict(optimizer=dict(lr=1e-3))  # learns within four iterations what is background
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""
CASES = {
    'mmdet': ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'sequencer_s', DETECTION),
    'mmseg': ('mmseg::upernet/upernet_r50_4xb2-40k_cityscapes-512x1024.py', 'maxvit_t', SEGMENTATION),
}
METRIC = {'mmdet': 'coco/AR@100', 'mmseg': 'mIoU'}


@pytest.fixture
def folder(tmp_path):
    make_shapes(tmp_path / 'data', size=64, num_train=4, num_val=2)
    yield tmp_path
    shutil.rmtree(tmp_path / 'work_dirs', ignore_errors=True)  # checkpoints with their optimizer


def python(folder: Path, *args: str) -> str:
    """What a process prints that must end well."""
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def tool(library: str, name: str) -> str:
    """A tool of the library's own, as its wheel carries it."""
    return str(Path(import_module(library).__file__).parent / '.mim' / 'tools' / name)


def scalars(folder: Path) -> list[dict]:
    """What the last run logged."""
    path = max(folder.glob('work_dirs/mine/*/vis_data/scalars.json'))
    return [json.loads(line) for line in path.read_text().splitlines()]


# with the tests of every day, tests/test_registry.py has that a library alone finds our types, and tests/test_swap.py
# takes a training step of a child in this process
@pytest.mark.slow
@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_tools_of_the_library_train_and_test(folder, library, monkeypatch):
    if not is_installed(MODULE2PACKAGE[library]):
        pytest.skip(
            f'mmengine by itself finds no {library}:: base of a fork, and these tools import only mmengine first'
        )
    config, name, text = CASES[library]
    monkeypatch.setattr(swap, 'FORWARD_SIZE', 64)
    swap.main([config, '--backbone', name, '--weights', 'none', '--size', '64', '-o', str(folder / 'swapped.py')])
    (folder / 'mine.py').write_text(text)
    assert 'custom_imports' not in (folder / 'swapped.py').read_text() + text

    python(folder, tool(library, 'train.py'), 'mine.py')
    logged = scalars(folder)
    if library == 'mmseg':  # a checkpoint of a run, with its optimizer and history, goes on in safe mode too
        python(folder, tool(library, 'train.py'), 'mine.py', '--resume', '--cfg-options', 'train_cfg.max_iters=4')
        logged += scalars(folder)
    losses = [(entry['step'], entry['loss']) for entry in logged if 'loss' in entry]
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
    assert len(losses) == {'mmdet': 2, 'mmseg': 4}[library]
    assert all(math.isfinite(loss) for _, loss in losses)
    if library == 'mmseg':
        assert losses[-1][1] < losses[0][1]
    validated = logged[-1][METRIC[library]]
    assert validated > 0

    checkpoint = (folder / 'work_dirs' / 'mine' / 'last_checkpoint').read_text()
    printed = python(folder, tool(library, 'test.py'), 'mine.py', checkpoint)
    assert 'do not match exactly' not in printed
    assert float(re.findall(rf'{METRIC[library]}: +([\d.]+)', printed)[-1]) == pytest.approx(validated, abs=1e-4)
