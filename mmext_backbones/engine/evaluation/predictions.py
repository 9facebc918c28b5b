"""Saves predictions of a test, and evaluates saved ones without a model.

What is written follows from the name the user gives:

- ``NAME.pkl``: every prediction as mmengine's DumpResults writes it, for any task;
- ``NAME.json``: COCO's result format, as ``NAME.bbox.json`` and, with masks, ``NAME.segm.json``; for configs that
  evaluate with mmdet's CocoMetric;
- a folder: a PNG of labels per image, numbered as in the data set's own label files; for mmseg's IoUMetric.

The first two can be evaluated again, by the evaluators of the config, to the same numbers.
"""

import collections
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.evaluator import DumpResults, Evaluator
from mmengine.registry import DATASETS, init_default_scope

from ...config.inputs import data_folder_of, keep_config_inputs
from ...datasets.bad_data.dataset import inner_datasets
from ...datasets.bad_data.truth import countable_annotations
from ...datasets.metainfo import classes_of
from ...registry import METRICS
from ...utils.errors import UserError, did_you_mean
from ...weights.safe_pickle import load_pickle
from .per_class import PerClass, record_classes

__all__ = ['DumpSmallResults', 'evaluate_predictions', 'find_predictions', 'save_predictions']

PICKLES = ('.pkl', '.pickle')
KEYS = {'bbox': 'bbox', 'segm': 'segmentation'}  # what an entry of COCO's result format needs for each kind


# --------------------------------------------------------------------------------------------------------------------
# Writing


@METRICS.register_module()
class DumpSmallResults(DumpResults):
    """DumpResults without the logits of segmentors, and with label maps in a byte a pixel where they fit.

    The 150 logits a pixel of ADE20K's images would fill hundreds of gigabytes, and no metric reads them.

    Args:
        out_file_path: Path of the file, ending in ``.pkl`` or ``.pickle``.
    """

    def process(self, data_batch: Any, predictions: Sequence[dict]) -> None:
        super().process(data_batch, [_small(sample) for sample in predictions])


def _small(sample: dict) -> dict:
    sample = {key: value for key, value in sample.items() if key != 'seg_logits'}
    maps = {key: sample[key]['data'] for key in ('gt_sem_seg', 'pred_sem_seg') if key in sample}
    if all(labels.numel() and labels.min() >= 0 and labels.max() <= 255 for labels in maps.values()):
        sample |= {key: {**sample[key], 'data': labels.to(torch.uint8)} for key, labels in maps.items()}
    return sample


def save_predictions(cfg: Config, out: str) -> list[Path]:
    """Extends the evaluators of a config so that a test writes its predictions.

    Args:
        cfg: The config; its `test_evaluator` is edited in place.
        out: What the user named: ``NAME.pkl``, ``NAME.json`` or a folder.

    Returns:
        The files (or the folder) that will be there after the test.

    Raises:
        UserError: for another suffix, one that the config's evaluators cannot write, or a place that cannot be written.
    """
    path = Path(out)
    metrics = _metrics(cfg, '--out')
    as_folder = path.is_dir() or not path.suffix or out.endswith(os.sep)
    if not as_folder and path.suffix not in (*PICKLES, '.json'):
        raise UserError(f'--out {out}: expected NAME.pkl, NAME.json (COCO detectors) or a folder (segmentors).')
    if as_folder:
        written = [path]
        for metric in _of_type(metrics, 'IoUMetric', f'--out {out}: a folder of label maps'):
            metric.output_dir = str(path)
    elif path.suffix == '.json':
        prefix = path.with_name(path.name.removesuffix('.json').removesuffix('.bbox').removesuffix('.segm'))
        coco, *others = _of_type(metrics, 'CocoMetric', f'--out {out}: a COCO result file')
        if others:
            raise UserError(f'--out {out}: the config has several CocoMetrics, which would write the same files.')
        coco.outfile_prefix = str(prefix)
        written = [Path(f'{prefix}.{kind}.json') for kind in ('bbox', 'segm')]
    else:
        written = [path]
        kind = 'mmdet.DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'mmext_backbones.DumpSmallResults'
        metrics.append(ConfigDict(type=kind, out_file_path=str(path)))
    cfg.test_evaluator = metrics
    _keep_data(cfg, out, written, as_folder)
    folder = path if as_folder else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.suffix == '.json':  # masks of an earlier test would pass for those of these boxes
            for old in written:
                old.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f'--out {out}: {folder} is no folder that can be written.') from error
    if not os.access(folder, os.W_OK):
        raise UserError(f'--out {out}: {folder} is no folder that can be written.')
    return written


def _keep_data(cfg: Config, out: str, written: Sequence[Path], as_folder: bool) -> None:
    """What is written must not replace the data: a folder of maps is none of theirs, nor a file their annotations."""
    keep_config_inputs(f'--out {out}', [] if as_folder else written, cfg)
    if as_folder and data_folder_of(out, cfg):
        raise UserError(f'--out {out} is a folder of the data: maps would replace its files. Name another folder.')


def _metrics(cfg: Config, option: str) -> list[ConfigDict]:
    """The config's metrics as a list."""
    evaluator = cfg.test_evaluator
    if isinstance(evaluator, dict):
        if 'metrics' not in evaluator:
            return [evaluator]
        if evaluator.get('type', 'Evaluator') != 'Evaluator':
            raise UserError(
                f'{option}: the config evaluates with {evaluator.type}, whose predictions have no one file.'
            )
        evaluator = evaluator.metrics
    return list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]


def _of_type(metrics: Sequence[ConfigDict], name: str, what: str) -> list[ConfigDict]:
    found = [metric for metric in metrics if str(metric.type).rpartition('.')[2] == name]
    if not found:
        kinds = ', '.join(str(metric.type) for metric in metrics)
        raise UserError(f'{what} needs the evaluator {name}, and this config has {kinds}. Try NAME.pkl.')
    return found


# --------------------------------------------------------------------------------------------------------------------
# Reading


def find_predictions(cfg: Config, predictions: str) -> dict[str, Path]:
    """The files meant by a name, before anything is built.

    Args:
        cfg: The config that will evaluate them.
        predictions: ``NAME.pkl``, or COCO results. Of ``NAME.bbox.json`` and ``NAME.segm.json`` the boxes or masks
            are evaluated; ``NAME.json`` means whatever that file holds or, where it is not there, the other two.

    Returns:
        Paths by what they hold: ``'pkl'``, or ``'bbox'`` and/or ``'segm'``.

    Raises:
        UserError: if there is no such file, or it cannot belong to this config.
    """
    path = Path(predictions)
    metrics = _metrics(cfg, '--predictions')
    if path.suffix not in (*PICKLES, '.json'):
        raise UserError(f'--predictions {predictions}: expected NAME.pkl, NAME.json, NAME.bbox.json or NAME.segm.json.')
    if path.suffix == '.json':
        _of_type(metrics, 'CocoMetric', f'--predictions {predictions}: a COCO result file')
        pair = {kind: path.with_suffix(f'.{kind}.json') for kind in ('bbox', 'segm')}
        pair = {kind: file for kind, file in pair.items() if file.is_file()}
        if not path.is_file() and pair:
            return pair
    if not path.is_file():
        known = [str(other) for other in path.parent.glob(f'*{path.suffix}')]
        raise UserError(f'predictions {predictions!r}: there is no such file.{did_you_mean(predictions, known)}')
    if path.suffix != '.json':
        return {'pkl': path}
    kind = path.with_suffix('').suffix.removeprefix('.')
    if kind in ('bbox', 'segm'):
        return {kind: path}
    entries = _read_json(path)
    held = {kind: path for kind, key in KEYS.items() if entries and all(key in entry for entry in entries)}
    if not held:
        raise UserError(f'predictions {predictions!r} hold neither boxes nor masks for every detection.')
    return held


def evaluate_predictions(cfg: Config, files: dict[str, Path]) -> tuple[dict[str, float], PerClass, int]:
    """Runs the evaluators of a config on saved predictions.

    Args:
        cfg: The config: its test data set and its evaluators are built, its model is not.
        files: From `find_predictions`.

    Returns:
        The metrics; the metrics of each class, see `record_classes`; the number of images.

    Raises:
        UserError: if a file cannot be read, or holds predictions for other images or classes.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    with countable_annotations():
        evaluator = Evaluator(_metrics(cfg, '--predictions'))
    evaluator.dataset_meta = getattr(dataset, 'metainfo', None)
    per_class = record_classes(evaluator)
    if 'pkl' in files:
        samples = _read_pickle(files['pkl'])
        _check_samples(samples, dataset, files['pkl'])
        try:
            metrics = evaluator.offline_evaluate(samples)
        except KeyError as error:
            if error.args[0] in samples[0]:
                raise
            raise UserError(
                f'predictions {str(files["pkl"])!r} lack something that '
                f'{" or ".join(type(metric).__name__ for metric in evaluator.metrics)} needs: {error.args[0]}'
            ) from error
        return metrics, per_class, len(dataset)

    metrics = {}
    for metric in evaluator.metrics:
        if hasattr(metric, 'results2json'):
            metrics |= _evaluate_json(metric, files)
    if not metrics and any(_read_json(path) for path in files.values()):
        raise UserError(f'--predictions: the files hold {" and ".join(files)}, which the config does not evaluate.')
    return metrics, per_class, len(dataset)


def _evaluate_json(metric: Any, files: dict[str, Path]) -> dict[str, float]:
    """A CocoMetric on result files: it goes its own way, but from the point where it would read its own files."""
    coco = metric._coco_api
    if coco is None:
        raise UserError('--predictions: the CocoMetric of the config names no ann_file, so it cannot evaluate JSON.')
    images, categories = set(coco.get_img_ids()), set(coco.get_cat_ids())
    without_boxes = None
    for kind, path in files.items():
        entries = _read_json(path)
        if not all(KEYS[kind] in entry for entry in entries):
            raise UserError(f'predictions {str(path)!r} have no {KEYS[kind]} for some detections.')
        for key, known in (('image_id', images), ('category_id', categories)):
            strange = {entry[key] for entry in entries} - known
            if strange:
                raise UserError(
                    f'predictions {str(path)!r} have {len(strange)} values of {key} that the data set does not, '
                    f'such as {next(iter(strange))!r}: they were made for other data.'
                )
        if kind == 'segm' and not all('bbox' in entry for entry in entries):
            without_boxes = entries

    def results2json(results: list, outfile_prefix: str) -> dict[str, str]:
        given = {kind: str(path) for kind, path in files.items()}
        if without_boxes is not None:  # mmdet takes the boxes out of the masks' entries, so there have to be some
            given['segm'] = f'{outfile_prefix}.segm.json'
            Path(given['segm']).write_text(json.dumps([{'bbox': [], **entry} for entry in without_boxes]))
        return given

    metric.metrics = [kind for kind in metric.metrics if kind in files]
    metric.outfile_prefix = None
    metric.results2json = results2json
    metric.results = [({}, {})]  # ground truth and prediction of an image, which nothing reads
    return metric.evaluate(size=1)


def _read_json(path: Path) -> list[dict]:
    try:
        entries = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'predictions {str(path)!r} cannot be read: {error}') from error
    wanted = {'image_id', 'category_id', 'score'}
    if not (isinstance(entries, list) and all(isinstance(entry, dict) and wanted <= entry.keys() for entry in entries)):
        raise UserError(
            f"predictions {str(path)!r} are not in COCO's result format: expected a list of entries with image_id, "
            'category_id, score, and bbox or segmentation.'
        )
    return entries


def _check_samples(samples: Any, dataset: BaseDataset, path: Path) -> None:
    """Predictions must be of these images and classes: the evaluators would not notice, or end in a puzzle."""
    name = f'predictions {str(path)!r}'
    if not (isinstance(samples, list) and samples and all(isinstance(sample, dict) for sample in samples)):
        raise UserError(f'{name}: expected a list with a dict for every image, as --out writes it.')
    if len(samples) != len(dataset):
        raise UserError(f'{name} are of {len(samples)} images, and the test data of the config has {len(dataset)}.')
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    for key in ('img_id', 'img_path'):
        if all(key in item for item in (*samples, *infos)):
            had, expected = (collections.Counter(Path(str(item[key])).name for item in of) for of in (samples, infos))
            if had != expected:
                strange = next(iter((had - expected).elements()))
                raise UserError(f'{name} are of other images: {key} {strange!r} is not in the test data of the config.')
            break
    num_classes = max(len(classes_of(leaf) or ()) for leaf in inner_datasets(dataset))
    largest = max(map(_largest_label, samples))
    if num_classes and largest >= num_classes:
        raise UserError(
            f'{name} are of at least {largest + 1} classes, and the test data of the config has {num_classes}.'
        )


def _largest_label(sample: dict) -> int:
    labels = [sample.get('pred_instances', {}).get('labels'), sample.get('pred_sem_seg', {}).get('data')]
    largest = [int(tensor.max()) for tensor in labels if tensor is not None and tensor.numel()]
    scores = sample.get('pred_score')
    return max([*largest, len(scores) - 1 if scores is not None else -1])


def _read_pickle(path: Path) -> Any:
    try:
        return load_pickle(path)
    except Exception as error:  # a damaged file fails in as many ways as it has bytes
        name = str(error).partition('GLOBAL ')[2].split()[:1]
        what = f'{name[0]} is neither a tensor nor a plain value' if name else str(error) or type(error).__name__
        raise UserError(f'predictions {str(path)!r} cannot be read: {what}') from error
