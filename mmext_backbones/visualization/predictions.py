"""What a model predicts beside the ground truth, with a score for each image; on request the worst images first.

    python tools/visualize.py predictions configs/swin_t_maskrcnn_1x.py work_dirs/.../iter_310.pth --shapes
    python tools/visualize.py predictions configs/swin_t_maskrcnn_1x.py work_dirs/.../iter_310.pth --shapes --worst

The score of an image is, for boxes, F1 at an IoU of 0.5 (of those drawn); for label maps, the mean IoU over the classes
of the image; for classes, the probability of the right one. Without --worst, images spread over the data are shown and
only those are predicted; with it, all are, or as many as --limit says.
"""

import argparse
import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from ..config.data_paths import check_data
from ..config.inputs import keep_config_inputs
from ..datasets.metainfo import metainfo_of
from ..drawing.files import check_out, save_picture
from ..drawing.samples import add_caption, draw_sides, sheet
from ..engine.runner import build_runner
from ..utils.cli import check_threshold
from ..utils.console import QuietStdout, say
from ..utils.errors import UserError
from ..utils.words import plural
from ..weights.checkpoints import check_checkpoint, check_match
from .configs import add_config_arguments, build_drawer, open_config, title_of

__all__ = ['ImageScore', 'add_arguments', 'match_boxes', 'run', 'score_image']

EDGE = 400  # pixels, longer side of an image on the sheet
MATCHED = 0.5  # IoU from which a box counts as found


@dataclass(frozen=True)
class ImageScore:
    """Of one image.

    Attributes:
        value: From 0, the worst, to 1; NaN where there is nothing to measure, as in a map without labels.
        detail: What `value` is, and from what it follows.
    """

    value: float
    detail: str


def score_image(sample: Any, score_thr: float, classes: Sequence[str] | None = None) -> ImageScore:
    """The score of a data sample with ground truth and prediction.

    Boxes: F1, of those predicted with at least `score_thr`, where one is right if it has the class of an object and an
    IoU of at least 0.5 with it; crowds and ignored objects count neither way. Label maps: the mean IoU over the classes
    that the image or its prediction has. Classes: the probability that the right one is given.

    Raises:
        UserError: if the sample has no ground truth, or none of these.
    """
    if 'gt_instances' in sample and 'pred_instances' in sample:
        return _score_boxes(sample, score_thr)
    if 'gt_sem_seg' in sample and 'pred_sem_seg' in sample:
        return _score_map(sample, len(classes) if classes is not None else None)
    if 'gt_label' in sample and 'pred_score' in sample:
        right = [float(sample.pred_score[int(label)]) for label in sample.gt_label]
        value = sum(right) / max(1, len(right))
        return ImageScore(value, f'{value:.2f} for the right class')
    raise UserError(
        f'image {sample.get("img_path")!r} has no ground truth, so there is nothing to measure predictions by. The '
        'pipeline has to load annotations (LoadAnnotations).'
    )


def _boxes(instances: Any) -> Tensor:
    return getattr(instances.bboxes, 'tensor', instances.bboxes).detach().float().cpu()


def _score_boxes(sample: Any, score_thr: float) -> ImageScore:
    gt, pred = sample.gt_instances, sample.pred_instances
    pred = pred[pred.scores >= score_thr]
    pred = pred[pred.scores.argsort(descending=True)]
    ignored = _boxes(sample.ignored_instances) if 'ignored_instances' in sample else torch.zeros(0, 4)
    ious, false = match_boxes(_boxes(gt), gt.labels.cpu(), _boxes(pred), pred.labels.cpu(), ignored)
    found, objects = len(ious), len(gt)
    total = 2 * found + false + (objects - found)
    value = 2 * found / total if total else 1.0
    mean = f', mean IoU {sum(ious) / found:.2f}' if found else ''
    return ImageScore(value, f'F1 {value:.2f}: {found} of {objects} found, {false} false{mean}')


def match_boxes(
    gt: Tensor, gt_labels: Tensor, pred: Tensor, pred_labels: Tensor, ignored: Tensor
) -> tuple[list[float], int]:
    """Gives each predicted box, in order, the object of its class that it covers best and that no earlier one has.

    Args:
        gt: [G, 4] as x1, y1, x2, y2.
        gt_labels: [G]
        pred: [P, 4]
        pred_labels: [P]
        ignored: [I, 4]; a prediction that lies in one with at least half of its area is neither right nor false.

    Returns:
        The IoUs of the right predictions, and the number of false ones.
    """
    overlaps = _overlaps(pred, gt)
    areas = (pred[:, 2:] - pred[:, :2]).clamp(min=0).prod(1)
    iou = overlaps / (areas[:, None] + (gt[:, 2:] - gt[:, :2]).clamp(min=0).prod(1)[None] - overlaps).clamp(min=1e-9)
    iou[pred_labels[:, None] != gt_labels[None]] = 0
    inside = (_overlaps(pred, ignored) / areas[:, None].clamp(min=1e-9) >= 0.5).any(1)
    ious, false = [], 0
    for index in range(len(pred)):
        value, best = iou[index].max(0) if len(gt) else (torch.tensor(0.0), None)
        if value >= MATCHED:
            ious.append(float(value))
            iou[:, best] = 0
        elif not inside[index]:
            false += 1
    return ious, false


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Common areas of boxes, [A, 4] and [B, 4] -> [A, B]."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    return (high - low).clamp(min=0).prod(-1)


def _score_map(sample: Any, num_classes: int | None) -> ImageScore:
    gt, pred = (next(iter(sample.get(key).values())).cpu().long() for key in ('gt_sem_seg', 'pred_sem_seg'))
    gt, pred = gt.reshape(-1, *gt.shape[-2:])[0], pred.reshape(-1, *pred.shape[-2:])[0]
    num = num_classes or int(pred.max()) + 1
    known = (gt >= 0) & (gt < num)  # 255 is no class
    if not known.any():
        return ImageScore(float('nan'), 'no labelled pixel')
    gt, pred = gt[known], pred[known]
    counts = torch.bincount(gt * num + pred, minlength=num * num).reshape(num, num)  # ground truth, prediction
    both = counts.diag()
    either = counts.sum(0) + counts.sum(1) - both
    value = float((both[either > 0] / either[either > 0]).mean())
    return ImageScore(
        value,
        f'mIoU {value:.2f} over {plural(int((either > 0).sum()), "class", "classes")}, {_percent(both, counts)} right',
    )


def _percent(both: Tensor, counts: Tensor) -> str:
    return f'{100 * float(both.sum() / counts.sum()):.0f} % of the pixels'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument('weights', metavar='WEIGHTS', help='a checkpoint of a training, or an address like timm://...')
    parser.add_argument('--split', choices=('val', 'test'), default='val', help='default: %(default)s')
    parser.add_argument('--number', type=int, default=8, help='images on the picture (default: %(default)s)')
    parser.add_argument('--worst', action='store_true', help='those with the lowest scores, the worst first')
    parser.add_argument(
        '--limit', type=int, metavar='N', help='with --worst: look for them among N images spread over the data'
    )
    parser.add_argument(
        '--threshold',
        '--score-thr',
        type=float,
        default=0.5,
        metavar='SCORE',
        help='draw and count boxes from this score on (default: 0.5)',
    )
    parser.add_argument('--out', default='predictions.png', metavar='FILE', help='the picture (default: %(default)s)')


def run(args: argparse.Namespace) -> None:
    for name in ('number', 'limit'):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f'--{name} {value}: expected 1 or more')
    check_threshold(args.threshold)
    if args.limit is not None and not args.worst:
        raise UserError('--limit goes with --worst: without it, only the images that are shown are predicted.')
    out = check_out(args.out)
    cfg = open_config(args)
    keep_config_inputs(f'--out {out}', [out], cfg, [args.weights])
    if cfg.get(f'{args.split}_dataloader') is None:
        raise UserError(f'config {args.config!r} has no {args.split}_dataloader.')
    check_data(cfg, (args.split,))
    drawer = build_drawer(cfg)
    state = check_checkpoint(args.weights)
    for part in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'test_{part}'] = cfg[f'{args.split}_{part}']
    cfg.load_from = args.weights
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(QuietStdout(sys.stdout)):
        cfg.work_dir, cfg.log_level = folder, 'ERROR'  # nobody needs the log
        cfg.visualizer, cfg.experiment_name = None, f'predictions_{time.time_ns()}'
        runner = build_runner(cfg, train=False)
        if state is not None:
            check_match(runner.model, state, args.weights, args.shapes)
        runner.load_or_resume()
        loader, indices = _spread(runner.test_dataloader, args.limit if args.worst else args.number)
        metainfo = metainfo_of(runner.test_dataloader.dataset)
        kept = _keep(_predicted(runner, loader, indices), args, metainfo)

    tiles = []
    for index, score, sample in kept:
        tile = draw_sides(drawer, metainfo, sample, EDGE, args.threshold)
        if tile is None:
            raise UserError('the data set names no files for its images (img_path): they cannot be drawn.')
        tiles.append(add_caption(tile, [f'{Path(sample.img_path).name} (no. {index})', score.detail]))
    pairs = tiles[0].shape[1] > 1.5 * EDGE
    what = f'the worst {len(tiles)} of {len(indices)} images' if args.worst else plural(len(tiles), 'image')
    sides = ', left: ground truth, right: prediction' if pairs else ''
    title = f'{title_of(args)}, {Path(args.weights).name}, {args.split}: {what}{sides}'
    save_picture(out, sheet(tiles, title, columns=2 if pairs else 4))


def _spread(loader: DataLoader, number: int | None) -> tuple[DataLoader, list[int]]:
    """A loader of some images, evenly spread over those of another; of all when `number` is None."""
    size = len(loader.dataset)
    indices = np.linspace(0, size - 1, min(number or size, size)).round().astype(int).tolist()
    subset = Subset(loader.dataset, indices)
    return DataLoader(
        subset, batch_size=loader.batch_sampler.batch_size, num_workers=0, collate_fn=loader.collate_fn
    ), indices


@torch.no_grad()
def _predicted(runner: Runner, loader: DataLoader, indices: list[int]) -> Iterator[tuple[int, Any]]:
    """Index and data sample of each image."""
    runner.model.eval()
    places = iter(indices)
    for batch in track(loader, 'predicting', console=Console(stderr=True), transient=True):
        for sample in runner.model.test_step(batch):
            yield next(places), sample


def _keep(
    predicted: Iterator[tuple[int, Any]], args: argparse.Namespace, metainfo: dict[str, Any]
) -> list[tuple[int, ImageScore, Any]]:
    """All, or the worst, the worst first; no more samples are held than are drawn."""
    kept: list[tuple[int, ImageScore, Any]] = []
    scores = []
    for index, sample in predicted:
        try:
            score = score_image(sample, args.threshold, metainfo.get('classes'))
        except UserError:
            if args.worst:
                raise
            score = ImageScore(math.nan, 'no ground truth')
        scores.append(score.value)
        kept.append((index, score, sample.cpu()))
        if args.worst:  # a stable order, and NaN last
            kept.sort(key=lambda item: (math.isnan(item[1].value), item[1].value))
            del kept[args.number :]
    known = [value for value in scores if not math.isnan(value)]
    if known:
        say(f'{plural(len(known), "image")}, mean score {np.mean(known):.3f}, median {np.median(known):.3f}')
    return kept
