"""Small data sets on the disk, and the loops of a run that read them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import EVALUATOR, init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmext_backbones.datasets.bad_data.runner import GuardedData

CLASSES = ('disc', 'bar')
LOAD = {'type': 'LoadImageFromFile'}
BOXES = [LOAD, {'type': 'LoadAnnotations', 'with_bbox': True}, {'type': 'PackDetInputs'}]
MAPS = [LOAD, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}]


def write_coco(root: Path, name: str, number: int = 3, change: Any = None, size: int = 16) -> dict:
    """`name.json` with pictures in the folder `name`, one object of each class on each.

    Args:
        change: Called with the content before it is written.
    """
    (root / name).mkdir(parents=True)
    images = [{'id': i, 'file_name': f'{name}_{i}.png', 'width': size, 'height': size} for i in range(1, number + 1)]
    annotations = []
    for image in images:
        Image.new('RGB', (size, size), (image['id'], 9, 9)).save(root / name / image['file_name'])
        for category in (1, 2):
            box = [category, category, 8, 6]
            mask = [[category, category, category + 8, category, category + 8, category + 6, category, category + 6]]
            annotations.append({
                'id': len(annotations) + 1, 'image_id': image['id'], 'category_id': category, 'bbox': box, 'area': 48,
                'iscrowd': 0, 'segmentation': mask,
            })  # fmt: skip
    categories = [{'id': i, 'name': name} for i, name in enumerate(CLASSES, 1)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    if change is not None:
        change(content)
    (root / f'{name}.json').write_text(json.dumps(content))
    return content


def coco(root: Path, name: str, pipeline: list | None = None, **keys: Any) -> dict:
    """The config of such a data set."""
    return {
        'type': 'CocoDataset', 'data_root': str(root), 'ann_file': f'{name}.json', 'data_prefix': {'img': f'{name}/'},
        'metainfo': {'classes': CLASSES}, 'pipeline': pipeline or BOXES, **keys,
    }  # fmt: skip


def write_maps(root: Path, labels: list[int], number: int = 3) -> None:
    """Pictures and their maps of labels, each with all of `labels`."""
    (root / 'img').mkdir(parents=True)
    (root / 'ann').mkdir()
    for i in range(number):
        Image.new('RGB', (16, 16)).save(root / 'img' / f'{i}.png')
        rows = np.resize(np.array(labels, np.uint8), 16)
        Image.fromarray(np.tile(rows[:, None], (1, 16))).save(root / 'ann' / f'{i}.png')


def maps(root: Path, pipeline: list | None = None, **keys: Any) -> dict:
    return {
        'type': 'BaseSegDataset', 'data_root': str(root), 'img_suffix': '.png',
        'data_prefix': {'img_path': 'img', 'seg_map_path': 'ann'}, 'metainfo': {'classes': ('ground', 'road')},
        'pipeline': pipeline or MAPS, **keys,
    }  # fmt: skip


def config(library: str, train: dict | None = None, val: dict | None = None, **keys: Any) -> Config:
    """A config with the loaders of one or two data sets, and a model of two classes."""
    init_default_scope(library)
    loader = {'batch_size': 1, 'num_workers': 0, 'collate_fn': {'type': 'pseudo_collate'}}
    cfg = {'default_scope': library, 'model': {'type': 'x', 'bbox_head': {'num_classes': 2}}}
    for split, dataset in (('train', train), ('val', val)):
        if dataset is not None:
            sampler = {'type': 'DefaultSampler', 'shuffle': False}
            cfg[f'{split}_dataloader'] = {**loader, 'sampler': sampler, 'dataset': dataset}
    return Config({**cfg, **keys})


class PlainLoops:
    """Of a Runner, the loaders of its loops and its evaluators."""

    build_dataloader = staticmethod(Runner.build_dataloader)

    def __init__(self, cfg: Config, log_dir: Path) -> None:
        self.cfg, self.log_dir = cfg, log_dir

    def build_train_loop(self, loader: dict) -> SimpleNamespace:
        return SimpleNamespace(dataloader=self.build_dataloader(loader, seed=0))

    def build_val_loop(self, loader: dict) -> SimpleNamespace:
        loader = self.build_dataloader(loader)  # before the evaluator, as mmengine's loops do
        given = self.cfg.val_evaluator
        evaluator = EVALUATOR.build(given) if isinstance(given, dict) and 'metrics' in given else Evaluator(given)
        return SimpleNamespace(dataloader=loader, evaluator=evaluator)


class Loops(GuardedData, PlainLoops):
    """Those of a guarded run."""

    def train(self) -> SimpleNamespace:
        return self.build_train_loop(self.cfg.train_dataloader)

    def val(self) -> SimpleNamespace:
        return self.build_val_loop(self.cfg.val_dataloader)
