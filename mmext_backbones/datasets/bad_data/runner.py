"""A runner that stops at data it cannot use, or leaves it out and says so at the end.

The config's ``bad_data``, ``'stop'`` or ``'skip'``, decides; `bad_data.dataset` does the work. What the data lacks as a
whole is told before the first step, see `coverage` and `truth`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ...config.editing import walk
from ...utils.attempts import attempt, warn
from ...utils.console import say
from ...utils.errors import UserError
from ...utils.files import write_whole
from .classes import check_classes, class_folders
from .coverage import check_iterations, count_labels, count_maps, lacking, lacking_pixels, weight_faults
from .dataset import checked_annotations, inner_datasets
from .guard import guard_of
from .kinds import KINDS, read_faults, stop
from .truth import countable_annotations, reads_as_coco, truth_faults

__all__ = ['MODES', 'GuardedData', 'needs_masks', 'report_bad_data']

MODES = ('stop', 'skip')
TOLD = 5  # faults on the screen; the file has all


class GuardedData:
    """For a Runner class: its data sets are guarded, and mean the classes that the model does."""

    testing = False  # a training loop that a hook asks for then is left alone
    _split: str | None = None
    _class_folders: list[str] | None = None

    def build_train_loop(self, loop: Any) -> Any:
        return self._build('train', super().build_train_loop, loop)

    def build_val_loop(self, loop: Any) -> Any:
        return self._build('val', super().build_val_loop, loop)

    def build_test_loop(self, loop: Any) -> Any:
        return self._build('test', super().build_test_loop, loop)

    def _build(self, split: str, build: Callable[[Any], Any], loop: Any) -> Any:
        if split == 'train' and self.testing:
            return build(loop)
        self._split = split
        try:
            with contextlib.ExitStack() as reading:
                if split != 'train' and attempt('a look at the metrics', reads_as_coco, self.cfg, split):
                    reading.enter_context(countable_annotations())
                    reading.enter_context(checked_annotations(self._skip, self._masks))
                loop = build(loop)
        finally:
            self._split = None
        attempt('the check of the batches', check_iterations, loop, split)
        if split != 'train':
            attempt('leaving bad data out of the metrics', _leave_out_of_metrics, loop)
        attempt('the check of what the data lacks', self._tell_faults, loop, split)
        return loop

    def _tell_faults(self, loop: Any, split: str) -> None:
        """Stops at what makes the results of a loop meaningless, and warns of what may do so."""
        dataset = loop.dataloader.dataset
        faults = list(truth_faults(self.cfg, split, dataset) if split != 'train' else ())
        errors = [fault for fault in faults if KINDS[fault.kind].level == 'error']
        if errors:
            raise stop(errors)
        if is_main_process():
            leaves = list(inner_datasets(dataset))
            faults += [fault for guard in filter(None, map(guard_of, leaves)) for fault in guard.faults]
            found = lacking(leaves, [count_labels(leaf) for leaf in leaves], split)
            faults += [fault for fault in found if split == 'train' or fault.kind != 'class without objects']
            for leaf in leaves if split == 'train' else ():
                maps = count_maps(leaf)
                faults += lacking_pixels(leaf, maps, split) + weight_faults(self.cfg, maps)
        lines = [f'  {fault}. {KINDS[fault.kind].remedy}' for fault in faults if KINDS[fault.kind].level == 'warning']
        if lines:
            warn('\n'.join([f'The {split} data should be looked at:', *lines]))

    @property
    def _masks(self) -> bool:
        return needs_masks(self.cfg)

    @property
    def _skip(self) -> bool:
        mode = self.cfg.get('bad_data') or MODES[0]
        if mode not in MODES:
            raise UserError(f"bad_data={mode!r}: expected 'stop' or 'skip'")
        return mode == 'skip'

    def build_dataloader(self, dataloader: DataLoader | dict, *args: Any, **kwargs: Any) -> DataLoader:
        split = self._split
        if split is None or not isinstance(dataloader, dict) or not isinstance(dataloader.get('dataset'), dict):
            return super().build_dataloader(dataloader, *args, **kwargs)
        if self._skip and split != 'train':
            say(f'Reading the {split} data once, to leave out what cannot be used ...')
        guarded = {
            'type': 'mmext_backbones.GuardedDataset',
            'dataset': dataloader['dataset'],
            'split': split,
            'skip': self._skip,
            'masks': self._masks,
            'folder': str(bad_data_folder(self)),
            'class_folders': self._class_folders,
            'workers': dataloader.get('num_workers', 0),
        }
        loader = super().build_dataloader({**dataloader, 'dataset': guarded}, *args, **kwargs)
        if split == 'train':
            leaf = next(inner_datasets(loader.dataset))
            self._class_folders = attempt('the check of class folders', class_folders, leaf)
        attempt('the check of the classes', check_classes, self.cfg, inner_datasets(loader.dataset), split)
        return loader


def _leave_out_of_metrics(loop: Any) -> None:
    """COCO's metric reads the annotations itself: it must not count images that the data set is without."""
    dataset, evaluator = loop.dataloader.dataset, loop.evaluator
    several = type(evaluator).__name__ == 'MultiDatasetsEvaluator'  # a metric for each data set
    for number, metric in enumerate(evaluator.metrics):
        guards = map(guard_of, inner_datasets(dataset.datasets[number] if several else dataset))
        left_out = {info.get('img_id') for guard in guards if guard is not None for info in guard.left_out}
        if not left_out:
            continue
        coco = getattr(metric, '_coco_api', None)
        if coco is None or not hasattr(coco, 'createIndex'):
            continue
        images = [image for image in coco.dataset['images'] if image['id'] not in left_out]
        annotations = [entry for entry in coco.dataset['annotations'] if entry['image_id'] not in left_out]
        coco.dataset = {**coco.dataset, 'images': images, 'annotations': annotations}
        coco.createIndex()
        coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # mmdet's names for them


def needs_masks(cfg: Config) -> bool:
    """Whether a config learns or measures instance masks."""
    parts = [cfg.get(f'{split}_{kind}') for split in ('train', 'val', 'test') for kind in ('dataloader', 'evaluator')]
    nodes = [node for part in parts for _, node in walk(part)]
    return any(node.get('with_mask') for node in nodes) or any('segm' in (node.get('metric') or ()) for node in nodes)


def bad_data_folder(runner: Runner) -> Path:
    """Where the processes of a run note what they left out."""
    return Path(runner.log_dir) / 'bad_data'


@contextlib.contextmanager
def report_bad_data(runner: Runner) -> Iterator[None]:
    """Says what a run left out when it ends, however it ends; the whole list is in ``bad_data/report.json``."""
    try:
        yield
    finally:
        found = read_faults(bad_data_folder(runner)) if is_main_process() else {}
        if found:
            path = bad_data_folder(runner) / 'report.json'
            report = {split: [fault._asdict() for fault in faults] for split, faults in found.items()}
            write_whole(path, json.dumps(report, indent=2, ensure_ascii=False) + '\n')
            for split, faults in found.items():
                say(f'\nLeft out of the {split} data, images and annotations: {len(faults)}')
                for fault in faults[:TOLD]:
                    say(f'  {fault.kind:<20} {fault}')
                if len(faults) > TOLD:
                    say(f'  ... and {len(faults) - TOLD} more')
            say(f'The whole list: {os.path.relpath(path)}')
