"""Draws the Shapes data set, so that every config can run before any real data is on disk.

Usage:
    python tools/make_shapes.py
    python tools/make_shapes.py --size 96 128 --train 200 --val 40 --preview shapes.png
"""

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmext_backbones.datasets.shapes.files import default_shapes_dir, make_shapes, rle_to_mask
from mmext_backbones.datasets.shapes.scenes import CLASSES, PALETTE
from mmext_backbones.utils.words import plural

GRID = 4  # the contact sheet is GRID x GRID scenes
TILE = 360  # pixels, about the longer edge of one enlarged scene
GAP = 14
PAPER = (250, 250, 252)


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage block."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {message}\n')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(
        prog='make_shapes.py',
        description='Draw the Shapes data set: COCO boxes and masks, semantic maps and class folders.',
    )
    parser.add_argument('--out', type=Path, help='folder of the set (default: data/shapes/ and a name that tells all)')
    parser.add_argument('--size', type=int, nargs='+', default=[128], metavar='N', help='edge, or H W (default: 128)')
    parser.add_argument('--train', type=int, default=400, metavar='N', help='training scenes (default: 400)')
    parser.add_argument('--val', type=int, default=80, metavar='N', help='validation scenes (default: 80)')
    parser.add_argument('--seed', type=int, default=0, help='another seed draws other pictures (default: 0)')
    parser.add_argument('--preview', type=Path, metavar='FILE.png', help='also draw a contact sheet with the labels')
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f'--size takes one number or two (H W), got {len(args.size)}')
    if args.preview is not None and args.preview.suffix.lower() != '.png':
        parser.error(f'--preview must name a .png file, got {str(args.preview)!r}')
    return args


def draw_label(canvas: np.ndarray, text: str, box: Sequence[float], color: tuple[int, int, int], taken: list) -> None:
    """A name on a pill of its class colour, beside `box` (x, y, w, h), inside `canvas` [H, W, 3], clear of `taken`.

    `taken` holds the pills drawn so far as (x, y); this one is added.
    """
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    (width, height), _ = cv2.getTextSize(text, font, scale, 1)
    w, h, gap = width + 8, height + 8, 4
    left, top, right, bottom = (round(v) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3]))
    places = [(left, top - h - gap), (left, bottom + gap), (right - w, top - h - gap), (right + gap, top)]
    places += [(left - w - gap, top), (right + gap, bottom - h), (left - w - gap, bottom - h)]
    limit = (canvas.shape[1] - w - 1, canvas.shape[0] - h - 1)
    fits = [p for p in places if 0 <= p[0] <= limit[0] and 0 <= p[1] <= limit[1]]
    clear = [p for p in fits if all(abs(p[0] - x) > w + 8 or abs(p[1] - y) > h for x, y in taken)]
    x, y = (clear or fits or [(min(max(left, 0), limit[0]), min(max(top, 0), limit[1]))])[0]
    taken.append((x, y))
    cv2.rectangle(canvas, (x, y), (x + w, y + h), color, cv2.FILLED)
    ink = (20, 20, 20) if np.dot(color, (0.299, 0.587, 0.114)) > 150 else (255, 255, 255)
    cv2.putText(canvas, text, (x + 4, y + h - 4), font, scale, ink, 1, cv2.LINE_AA)


def draw_tile(image: np.ndarray, annotations: list[dict], factor: float) -> np.ndarray:
    """One scene [H, W, 3] enlarged `factor` times, with the outline and the name of every instance."""
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    tile = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    for annotation in annotations:
        color = PALETTE[annotation['category_id'] - 1]
        mask = rle_to_mask(annotation['segmentation']).astype(np.float32)
        large = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)
        large = cv2.GaussianBlur(large, (0, 0), max(0.5, 0.5 * factor)) >= 0.5  # rounds the pixel steps off
        contours, _ = cv2.findContours(large.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, (255, 255, 255), 4, cv2.LINE_AA)
        cv2.drawContours(tile, contours, -1, color, 2, cv2.LINE_AA)
    taken = []
    for annotation in annotations:  # names last: no outline runs through them
        category = annotation['category_id'] - 1
        draw_label(tile, CLASSES[category], [v * factor for v in annotation['bbox']], PALETTE[category], taken)
    return tile


def draw_preview(out_dir: Path) -> np.ndarray:
    """A contact sheet of the first training scenes, read back from disk, [H, W, 3]."""
    coco = json.loads((out_dir / 'annotations' / 'instances_train.json').read_text())
    images = coco['images'][: GRID * GRID]
    H, W = images[0]['height'], images[0]['width']
    factor = TILE / max(H, W)
    h, w = round(H * factor), round(W * factor)
    columns = min(GRID, len(images))
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (h + GAP) + GAP, columns * (w + GAP) + GAP, 3), PAPER, dtype=np.uint8)
    for i, image in enumerate(images):
        annotations = [a for a in coco['annotations'] if a['image_id'] == image['id']]
        data = np.frombuffer((out_dir / 'train' / image['file_name']).read_bytes(), dtype=np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
        top, left = GAP + i // columns * (h + GAP), GAP + i % columns * (w + GAP)
        sheet[top : top + h, left : left + w] = draw_tile(np.ascontiguousarray(pixels), annotations, factor)
    return sheet


def write_preview(out_dir: Path, path: Path) -> None:
    _, data = cv2.imencode('.png', draw_preview(out_dir)[..., ::-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def print_summary(out_dir: Path) -> None:
    """A table of what lies in `out_dir`: objects and single-shape pictures of each class."""
    counts = {}
    for split in ('train', 'val'):
        coco = json.loads((out_dir / 'annotations' / f'instances_{split}.json').read_text())
        counts[split] = Counter(annotation['category_id'] for annotation in coco['annotations'])
        print(f'{split:>9}: {plural(len(coco["images"]), "scene")}, {plural(len(coco["annotations"]), "object")}')
    print(f'{"":>9}  {"train":>7} {"val":>7} {"crops train":>12} {"crops val":>10}')
    for i, name in enumerate(CLASSES):
        crops = [len(list((out_dir / 'classes' / split / name).iterdir())) for split in ('train', 'val')]
        print(f'{name:>9}: {counts["train"][i + 1]:>7} {counts["val"][i + 1]:>7} {crops[0]:>12} {crops[1]:>10}')


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    size = args.size[0] if len(args.size) == 1 else tuple(args.size)
    started = time.perf_counter()
    done = 0
    bar = Progress(
        TextColumn('drawing'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    try:
        out_dir = args.out or default_shapes_dir(size, args.train, args.val, args.seed)
        with bar:
            task = bar.add_task('drawing', total=None)

            def progress(now: int, total: int) -> None:
                nonlocal done
                done = now
                bar.update(task, completed=now, total=total)

            make_shapes(out_dir, size=size, num_train=args.train, num_val=args.val, seed=args.seed, progress=progress)
        elapsed = time.perf_counter() - started
        print(f'{plural(done, "picture")} drawn in {elapsed:.1f} s: {out_dir}' if done else f'already there: {out_dir}')
        print_summary(out_dir)
        if args.preview is not None:
            write_preview(out_dir, args.preview)
            print(f'preview: {args.preview}')
    except (ValueError, OSError) as error:
        print(f'make_shapes.py: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('make_shapes.py: interrupted', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
