"""Metrics class by class: recorded while a test is evaluated, and as a table."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric, Evaluator
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...utils.attempts import MayFail
from ...utils.printable import one_line

PerClass = dict[str, dict[str, dict[str, float]]]  # kind -> class -> measure -> value, NaN where undefined
MakeTables = Callable[[dict], PerClass]
KINDS = {'bbox': 'box', 'segm': 'mask', 'semantic': 'class', 'classification': 'class'}
COUNTS = ('objects', 'images')
FEW_CLASSES = 20  # up to here a line a class with every measure; above, only the first ones, side by side
MANY_CLASSES = 400  # above, nothing on the screen
WIDTH = 120  # of the screen, in characters


def record_classes(evaluator: Evaluator) -> PerClass:
    """Lets the metrics of an evaluator leave the values of each class behind.

    They are taken from the same sums and curves as the metrics themselves, unrounded, when those are computed.

    Args:
        evaluator: A built evaluator; its CocoMetric (mmdet), IoUMetric (mmseg), Accuracy (mmpretrain) and our
            SubsetAccuracy are watched.

    Returns:
        A dict that is empty until the evaluation, and on all processes but the first.
    """
    per_class: PerClass = {}
    for metric in getattr(evaluator, 'metrics', None) or ():
        for base in type(metric).__mro__:
            record = RECORDERS.get((base.__module__.partition('.')[0], base.__name__))
            if record is not None:
                metric.compute_metrics = _recording(metric, record, per_class)
                break
    return per_class


def _recording(metric: BaseMetric, record: Callable, per_class: PerClass) -> Callable:
    compute, may_fail = metric.compute_metrics, MayFail('the metrics of each class')

    def compute_metrics(results: list) -> dict:
        metrics, make_tables = record(metric, compute, results)
        with may_fail:
            for kind, table in make_tables(metrics).items():
                number = 1 + sum(name.partition(' ')[0] == kind for name in per_class)
                per_class[kind if number == 1 else f'{kind} {number}'] = table
        return metrics

    return compute_metrics


# Each computes the metrics, and returns them with a function that makes the tables out of them.


def _record_coco(metric: BaseMetric, compute: Callable, results: list) -> tuple[dict, MakeTables]:
    """mmdet keeps pycocotools' evaluations to itself, and its own classwise values name no kind: boxes or masks."""
    from mmdet.evaluation.metrics import coco_metric

    evaluations = []

    def noting(make: Callable) -> Callable:
        def make_and_note(*args: Any, **kwargs: Any) -> Any:
            evaluations.append(make(*args, **kwargs))
            return evaluations[-1]

        return make_and_note

    names = [name for name in ('COCOeval', 'COCOevalMP') if hasattr(coco_metric, name)]
    makers = {name: getattr(coco_metric, name) for name in names}
    try:
        for name, make in makers.items():
            setattr(coco_metric, name, noting(make))
        metrics = compute(results)
    finally:
        for name, make in makers.items():
            setattr(coco_metric, name, make)
    return metrics, lambda _: {each.params.iouType: _coco_classes(each) for each in evaluations if each.params.useCats}


def _coco_classes(done: Any) -> dict[str, dict[str, float]]:
    """AP of each class from a finished COCOeval: the mean over thresholds and recalls, as its summary over classes."""
    precision = torch.from_numpy(done.eval['precision'])  # [thresholds, recalls, classes, sizes, detections an image]
    limits = list(done.params.maxDets)
    all_at = limits.index(100) if 100 in limits else -1  # the summary's AP is at 100 detections, the others at most
    gt = done.cocoGt
    table = {}
    for index, category in enumerate(done.params.catIds):
        curves = precision[:, :, index]
        values = {'AP': curves[:, :, 0, all_at]}
        for percent in (50, 75):
            at = [i for i, threshold in enumerate(done.params.iouThrs) if math.isclose(threshold, percent / 100)]
            values[f'AP_{percent}'] = curves[at, :, 0, -1]
        values |= {f'AP_{size}': curves[:, :, i, -1] for i, size in enumerate('sml', start=1)}
        row = {name: float(value[value > -1].mean()) for name, value in values.items()}  # NaN without any
        row['objects'] = len(gt.getAnnIds(imgIds=done.params.imgIds, catIds=[category], iscrowd=False))
        table[gt.cats[category]['name']] = row
    return table


def _record_iou(metric: BaseMetric, compute: Callable, results: list) -> tuple[dict, MakeTables]:
    return compute(results), lambda _: _iou_tables(metric, results)


def _iou_tables(metric: BaseMetric, results: list) -> PerClass:
    if metric.format_only:
        return {}
    areas = [sum(area) for area in zip(*results, strict=True)]  # intersection, union, prediction, label: [classes]
    values = metric.total_area_to_metrics(*areas, metric.metrics, metric.nan_to_num, metric.beta)
    values.pop('aAcc')
    classes = metric.dataset_meta['classes']
    table = {name: {key: 100 * float(value[i]) for key, value in values.items()} for i, name in enumerate(classes)}
    return {'semantic': table}


def _record_accuracy(metric: BaseMetric, compute: Callable, results: list) -> tuple[dict, MakeTables]:
    return compute(results), lambda metrics: _accuracy_tables(metric, results, metrics)


def _accuracy_tables(metric: BaseMetric, results: list, metrics: dict) -> PerClass:
    classes = (metric.dataset_meta or {}).get('classes')
    if not results or not classes or 'top1' not in metrics:
        return {}
    labels = torch.tensor([int(result['gt_label']) for result in results])
    scored = 'pred_score' in results[0]
    predicted = [int(result['pred_score'].argmax() if scored else result['pred_label']) for result in results]
    right = labels == torch.tensor(predicted)
    table = {}
    for index, name in enumerate(classes):
        of_class = right[labels == index].double()
        table[name] = {'top1': 100 * float(of_class.mean()), 'images': len(of_class)}
    return {'classification': table}


RECORDERS = {
    ('mmdet', 'CocoMetric'): _record_coco,
    ('mmseg', 'IoUMetric'): _record_iou,
    ('mmpretrain', 'Accuracy'): _record_accuracy,
    ('mmext_backbones', 'SubsetAccuracy'): _record_accuracy,
}


def per_class_lines(per_class: PerClass) -> list[str]:
    """The tables as lines: for few classes a table a kind; for many, one table with the main measures in columns."""
    if not per_class:
        return []
    longest = max(map(len, per_class.values()))
    if longest > MANY_CLASSES:
        return [f'{longest} classes: their values are in the file of results.']
    if longest <= FEW_CLASSES:
        lines = []
        for kind, table in per_class.items():
            heads = list(next(iter(table.values())))
            rows = [[name, *(_cell(head, row[head]) for head in heads)] for name, row in table.items()]
            lines += ['', *_render([KINDS.get(kind, kind), *heads], rows)]
        return lines[1:]
    columns = _main_columns(per_class)
    names = list(dict.fromkeys(name for table in per_class.values() for name in table))
    rows = [
        [name, *(_cell(key, per_class[kind].get(name, {}).get(key, math.nan)) for kind, key, _ in columns)]
        for name in names
    ]
    head = ['class', *(title for *_, title in columns)]
    return _render(head, rows)


def _main_columns(per_class: PerClass) -> list[tuple[str, str, str]]:
    """(kind, measure, title) of what is worth a column for every class: all measures of one kind, or one of each."""
    first = {kind: next(iter(table.values())) for kind, table in per_class.items()}
    few = len(per_class) == 1 and len(next(iter(first.values()))) <= 2
    if few:
        return [(kind, key, key) for kind, row in first.items() for key in row]
    return [(kind, key, f'{KINDS.get(kind, kind)} {key}') for kind, row in first.items() for key in list(row)[:1]]


def _cell(measure: str, value: float) -> str:
    if not math.isfinite(value):
        return '-'
    return f'{value}' if measure in COUNTS else f'{value:.3f}' if measure.startswith('AP') else f'{value:.2f}'


def _render(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as lines; more than `FEW_CLASSES` rows stand side by side, read down the columns."""
    rows = [[one_line(row[0]), *row[1:]] for row in rows]
    name_width = min(19, max(10, *(Text(row[0]).cell_len for row in [head, *rows])))
    widths = [max(6, *(len(row[i]) for row in [head, *rows])) for i in range(1, len(head))]
    panels = 1
    if len(rows) > FEW_CLASSES:
        panels = max(1, (WIDTH + 5) // (name_width + 2 + sum(width + 2 for width in widths) + 3))
    height = -(-len(rows) // panels)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style='')
    for panel in range(panels):
        if panel:
            table.add_column('', width=1)
        table.add_column(Text(head[0]), width=name_width, no_wrap=True)
        for title, width in zip(head[1:], widths, strict=True):
            table.add_column(Text(title), width=width, justify='right', no_wrap=True)
    blank = [''] * len(head)
    for index in range(height):
        cells = []
        for panel in range(panels):
            at = panel * height + index
            cells += ([''] if panel else []) + [*(rows[at] if at < len(rows) else blank)]
        table.add_row(*map(Text, cells))
    screen = io.StringIO()
    Console(file=screen, width=2 * WIDTH, color_system=None, legacy_windows=False).print(table)
    return [line.rstrip() for line in screen.getvalue().splitlines()]
