"""Checks that an evaluator which reads a COCO file of its own measures against the truth of the data set.

COCO's metric is told of images by their numbers. Where two files number their images alike, it measures predictions of
one against the objects of the other, without a word; where they do not, it fails after the whole validation.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import METRICS

from ...config.editing import type_name, walk
from ...utils.errors import few
from ..metainfo import classes_of
from .dataset import class_of, inner_datasets
from .guard import guard_of
from .kinds import Fault
from .scan import spread

__all__ = ['check_truth', 'countable_annotations', 'evaluator_files', 'reads_as_coco', 'truth_faults']

ENTRIES = 2000  # samples that are looked at
BY_CLASSES = {'CocoMetric', 'CocoPanopticMetric'}  # and what is derived from them: a label means a category of the file


def evaluator_files(cfg: Config, split: str) -> list[str]:
    """The annotation files that the evaluators of a split name."""
    named = [node.get('ann_file') for _, node in walk(cfg.get(f'{split}_evaluator'))]
    return [name for name in named if isinstance(name, str)]


def reads_as_coco(cfg: Config, split: str) -> bool:
    """Whether every file that the evaluators of a split name is read by mmdet's CocoMetric.

    Others give such files meanings of their own: gRefCOCOMetric has category -1 for what a sentence does not find.
    """
    named = [node for _, node in walk(cfg.get(f'{split}_evaluator')) if isinstance(node.get('ann_file'), str)]
    return all('CocoMetric' in _bases(node) for node in named)


def _bases(metric: dict) -> set[str]:
    """Names of a metric's class and of what it is derived from."""
    cls = class_of(metric, METRICS) if 'type' in metric else None
    return {base.__name__ for base in getattr(cls, '__mro__', ())}


def truth_faults(cfg: Config, split: str, dataset: Any) -> list[Fault]:
    """What is wrong with the COCO files that the evaluators of a split name.

    Args:
        cfg: The whole config.
        split: ``'val'`` or ``'test'``.
        dataset: The built data set of the split.
    """
    evaluator = cfg.get(f'{split}_evaluator')
    metrics = [
        node
        for _, node in walk(evaluator)
        if 'type' in node and not node.get('format_only') and not BY_CLASSES.isdisjoint(_bases(node))
    ]
    several = isinstance(evaluator, dict) and type_name(evaluator) == 'MultiDatasetsEvaluator'
    faults = []
    for number, metric in enumerate(metrics):
        path = metric.get('ann_file')
        if not isinstance(path, str) or not Path(path).is_file():
            continue
        content = json.loads(Path(path).read_bytes())
        measured = dataset.datasets[number] if several else dataset
        faults += check_truth(content, path, list(inner_datasets(measured)), split)
    return faults


def check_truth(content: dict, path: str, leaves: Sequence[Any], split: str) -> list[Fault]:
    """One COCO file against the samples that are measured by it.

    Args:
        content: Of the file.
        path: Its name.
        leaves: The data sets of samples.
        split: Their split.
    """
    faults = []
    number = _uncountable(content.get('annotations', ()))
    if number is not None:
        faults.append(Fault('annotation number', path, f'an annotation has the number {number!r}'))
    names = {image.get('id'): image.get('file_name') for image in content.get('images', ())}
    leaves = [leaf for leaf in leaves if guard_of(leaf) is not None]
    infos = [leaf.get_data_info(index) for leaf in leaves for index in spread(len(leaf), ENTRIES)]
    infos = [info for info in infos if 'img_id' in info]
    data = few([str(getattr(leaf, 'ann_file', '')) for leaf in leaves])
    told = f'{split}_dataloader reads {data}, {split}_evaluator.ann_file is {path}'
    classes = next(filter(None, map(classes_of, leaves)), None)
    order = [each.get('name') for each in content.get('categories', ()) if each.get('name') in (classes or ())]
    own = any(Path(str(getattr(leaf, 'ann_file', ''))).resolve() == Path(path).resolve() for leaf in leaves)
    if classes is not None and order != list(classes) and not own:
        detail = f'{told}, which has of the classes of the data ({few(classes)}) these, in its order: {few(order)}'
        return [*faults, Fault('other truth', path, detail)]
    return faults + _other_images(names, infos, told, path, sum(len(leaf) + _left_out(leaf) for leaf in leaves))


def _other_images(names: dict[Any, Any], infos: Sequence[dict], told: str, path: str, number: int) -> list[Fault]:
    """How the images of an evaluator's file differ from those of the data.

    Args:
        names: File names in the evaluator's file, by number.
        infos: Entries of the data.
        told: Which files these are.
        path: The evaluator's file.
        number: Of images in the data.
    """
    unknown = [info for info in infos if info['img_id'] not in names]
    if unknown:
        detail = f'{told}, which lacks {len(unknown)} of {len(infos)} images of the data, such as {_name(unknown[0])}'
        return [Fault('other truth', path, detail)]
    other = [info for info in infos if not _alike(_name(info), names[info['img_id']])]
    if other:
        known = names[other[0]['img_id']]
        detail = (
            f'{told}, where {len(other)} of {len(infos)} images have the number of another file: '
            f'{other[0]["img_id"]!r} is {_name(other[0])} in the one, and {known} in the other'
        )
        return [Fault('other truth' if 2 * len(other) > len(infos) else 'other files', path, detail)]
    if infos and len(names) > number:
        detail = f'{told}, which has {len(names)} images, and the data {number}: objects of the others count as missed'
        return [Fault('fewer images', path, detail)]
    return []


def _left_out(leaf: Any) -> int:
    """Images of a data set that were taken out of it, or may have been with an entry that is wrong."""
    guard = guard_of(leaf)
    return 0 if guard is None else len(guard.left_out) + len(guard.faults)


def _name(info: dict) -> str:
    return os.path.basename(str(info.get('img_path')))


def _alike(name: str, other: Any) -> bool:
    """Whether two file names may be of one image: pictures are converted, and changed ones get a longer name."""
    if not isinstance(other, str):
        return True
    a, b = (os.path.splitext(os.path.basename(each))[0] for each in (name, other))
    return a == b or (min(len(a), len(b)) > 3 and (a.startswith(b) or b.startswith(a)))


def _uncountable(annotations: Sequence[dict]) -> Any:
    """The first number of an annotation that pycocotools cannot note as a match: 0, or a text; None if all can be."""
    for annotation in annotations:
        number = annotation.get('id')
        if number is not None and (isinstance(number, str) or number == 0):
            return number
    return None


@contextlib.contextmanager
def countable_annotations() -> Iterator[None]:
    """COCO files that are read within have no annotation 0, with which a match would count as none, and no texts.

    pycocotools keeps the number of the object that a detection matches, and takes 0 for no match. Nothing that is
    measured depends on the numbers themselves.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError:  # then nothing reads one
        yield
        return
    create_index = COCO.createIndex

    def countable(self: Any) -> None:
        annotations = self.dataset.get('annotations', ()) if isinstance(self.dataset, dict) else ()
        if _uncountable(annotations) is not None:
            for number, annotation in enumerate(annotations, 1):
                annotation['id'] = number
        create_index(self)

    COCO.createIndex = countable
    try:
        yield
    finally:
        COCO.createIndex = create_index
