"""Draws data samples: ground truth or predictions of an image.

Boxes with masks are drawn by `objects`, maps of classes by `legend`, all else by the visualizer of the config. Images,
boxes and masks are brought to one size first, so that the labels stay legible on small images.
"""

import textwrap
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import cv2
import mmengine.fileio as fileio
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.structures import PixelData
from mmengine.visualization import Visualizer

from .legend import DARK, LIGHT, draw_segments
from .objects import class_colours, draw_objects
from .pixels import to_rgb

__all__ = [
    'GAP',
    'add_caption',
    'can_draw',
    'draw_sample',
    'draw_sides',
    'has_two_sides',
    'read_image',
    'resize_sample',
    'sheet',
]

GAP = 16  # pixels between pictures on a sheet
SEMANTIC, PANOPTIC = ('gt_sem_seg', 'pred_sem_seg'), ('gt_panoptic_seg', 'pred_panoptic_seg')
MAPS = SEMANTIC + PANOPTIC
LOOKS = ('alpha', 'line_width', 'bbox_color', 'text_color', 'mask_color')  # of a visualizer, set by its config
INSTANCES = ('gt_instances', 'pred_instances')
FONT_SIZE = 12  # pixels, of the labels of boxes
FONT = cv2.FONT_HERSHEY_SIMPLEX


def can_draw(visualizer: Visualizer) -> bool:
    """Whether the visualizer of a config draws samples: mmdet's, mmseg's and mmpretrain's do, mmengine's does not."""
    return type(visualizer) is not Visualizer


def draw_sides(
    visualizer: Visualizer,
    metainfo: Mapping[str, Any],
    sample: Any,
    edge: int,
    score_thr: float,
    shrink: bool = True,
    inputs: torch.Tensor | None = None,
) -> np.ndarray | None:
    """One image with what is known of it: ground truth on the left, prediction on the right.

    Args:
        visualizer: Of the config.
        metainfo: Of the data set: its classes and colours.
        sample: With annotations and predictions in the coordinates of the image as it was read.
        edge: Longer side of an image in pixels.
        score_thr: Least score of a box that is drawn.
        shrink: Images larger than `edge` become smaller.
        inputs: [C, h, w], what the pipeline made of the image: shown where the sample names no file of a picture.

    Returns:
        RGB [h, w, 3]; None if the visualizer draws no samples, or there is nothing to draw on. A classified image, and
        one without annotations, has one side.
    """
    image = _image_of(sample, inputs) if can_draw(visualizer) else None
    if image is None:
        return None
    if not shrink:
        edge = max(edge, *image.shape[:2])
    if not has_two_sides(sample):
        return draw_sample(visualizer, metainfo, image, sample, edge, score_thr)
    sides = [
        draw_sample(visualizer, metainfo, image, sample, edge, score_thr, draw_gt=gt, draw_pred=not gt)
        for gt in (True, False)
    ]
    return np.concatenate([sides[0], np.full((len(sides[0]), GAP // 2, 3), 255, np.uint8), sides[1]], axis=1)


def has_two_sides(sample: Any) -> bool:
    """Whether `draw_sides` draws annotations beside predictions: there are some, of parts of the image."""
    return 'gt_label' not in sample and _has(sample, 'gt_')


def _has(sample: Any, kind: str) -> bool:
    return any(name.startswith(kind) for name in sample.keys())  # noqa: SIM118, iterating over a sample is another thing


def _image_of(sample: Any, inputs: torch.Tensor | None) -> np.ndarray | None:
    """RGB [H, W, 3] in the coordinates of a sample: its file, or else what the network was given; None without both.

    A file of another size is not what was predicted (a tile of it was), and no inputs fit that were turned over.
    """
    image = read_image(sample.img_path) if getattr(sample, 'img_path', None) else None
    size = tuple(getattr(sample, 'ori_shape', None) or ())[:2]
    if image is not None and size in ((), image.shape[:2]):
        return image
    if not isinstance(inputs, torch.Tensor) or inputs.dim() != 3 or getattr(sample, 'flip', False):
        return image
    h, w = (getattr(sample, 'img_shape', None) or inputs.shape[-2:])[:2]  # without what was padded
    pixels = to_rgb(inputs[:, :h, :w].permute(1, 2, 0).cpu().numpy())
    return cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR) if size else pixels


def draw_sample(
    visualizer: Visualizer,
    metainfo: Mapping[str, Any],
    image: np.ndarray,
    sample: Any,
    edge: int,
    score_thr: float = 0.0,
    *,
    draw_gt: bool = True,
    draw_pred: bool = True,
) -> np.ndarray:
    """An image with a sample in its coordinates drawn on it, RGB [h, w, 3] with `edge` as the longer side.

    A semantic map has a panel at its right, with the names of its classes, which makes the picture wider.

    Args:
        visualizer: Of the config.
        metainfo: Of the data set: its classes and colours.
        image: RGB [H, W, 3], uint8.
        sample: A data sample of mmdet, mmseg or mmpretrain; it stays as it is.
        edge: In pixels.
        score_thr: Least score of a predicted box.
        draw_gt: Draw the annotations.
        draw_pred: Draw the predictions.
    """
    # one without backends, so nothing else is written
    drawer = type(visualizer).get_instance(f'{__name__}.{type(visualizer).__name__}')
    drawer.dataset_meta = dict(metainfo)
    for name in LOOKS:
        if hasattr(visualizer, name):
            setattr(drawer, name, getattr(visualizer, name))
    H, W = image.shape[:2]
    scale = edge / max(H, W)
    h, w = max(1, round(H * scale)), max(1, round(W * scale))
    image = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    sample = resize_sample(sample, (H, W), (h, w), score_thr)
    if any('bboxes' in sample.get(field, ()) for field in INSTANCES) and not any(field in sample for field in MAPS):
        wanted = [field for field, draw in zip(INSTANCES, (draw_gt, draw_pred), strict=True) if draw]
        for field in wanted:
            image = _draw_instances(image, sample.get(field, {}), metainfo)
        if draw_pred and score_thr > 0 and _nothing(sample.get('pred_instances')):
            image = _note(image, f'nothing above {score_thr:g}')
        return image
    maps = [field for field, draw in zip(SEMANTIC, (draw_gt, draw_pred), strict=True) if draw and field in sample]
    if maps and not any(field in sample for field in PANOPTIC) and metainfo.get('classes'):
        return _draw_map(image, sample.get(maps[-1]), metainfo)
    if hasattr(drawer, 'visualize_cls') and ('gt_label' in sample or 'pred_label' in sample):
        return drawer.visualize_cls(image, sample, draw_gt=draw_gt, draw_pred=draw_pred)
    if not ((draw_gt and _has(sample, 'gt_')) or (draw_pred and _has(sample, 'pred_'))):
        return image
    options = {'pred_score_thr': score_thr} if 'pred_instances' in sample else {}
    drawer.set_image(image)  # some visualizers set none where they find nothing that they know
    drawer.add_datasample('image', image, sample, draw_gt=draw_gt, draw_pred=draw_pred, **options)
    return drawer.get_image()


def _draw_instances(image: np.ndarray, instances: Any, metainfo: Mapping[str, Any]) -> np.ndarray:
    """Boxes, masks, classes and scores of instances on an image of their size."""
    if 'bboxes' not in instances or not len(instances.bboxes):
        return image
    classes = metainfo.get('classes') or ()
    labels = torch.as_tensor(instances.labels).cpu().numpy()
    names = [classes[i] if i < len(classes) else str(i) for i in labels.tolist()]
    palette = metainfo.get('palette')
    colours = class_colours(range(max([len(classes), *(labels + 1)])), None if isinstance(palette, str) else palette)
    return draw_objects(
        np.ascontiguousarray(image),
        getattr(instances.bboxes, 'tensor', instances.bboxes).cpu().numpy(),
        names,
        colours[labels % len(colours)],
        font_size=FONT_SIZE,
        masks=instances.masks.numpy() if 'masks' in instances else None,
        scores=instances.scores.cpu().numpy() if 'scores' in instances else None,
    )


def _nothing(predicted: Any) -> bool:
    return predicted is not None and not len(predicted)


def _note(image: np.ndarray, text: str) -> np.ndarray:
    """The image with a word at its upper left, light on a dark bar."""
    image, height = np.ascontiguousarray(image).copy(), FONT_SIZE + 10
    width = cv2.getTextSize(text, FONT, 0.45, 1)[0][0] + 12
    image[:height, :width] = DARK
    cv2.putText(image, text, (6, height - 8), FONT, 0.45, LIGHT, 1, cv2.LINE_AA)
    return image


def _draw_map(image: np.ndarray, data: Any, metainfo: Mapping[str, Any]) -> np.ndarray:
    """The class of each pixel, and beside the image what share each class has."""
    labels = next(iter(data.values())).cpu().numpy()
    labels = labels.reshape(-1, *labels.shape[-2:])[0].astype(np.int64)
    classes, palette = tuple(metainfo['classes']), metainfo.get('palette')
    colours = class_colours(classes, None if isinstance(palette, str) else palette)

    def name_of(label: int) -> str:
        return classes[label] if label < len(classes) else 'unlabelled'

    return draw_segments(np.ascontiguousarray(image).copy(), labels, classes, colours, FONT_SIZE, name_of)


def read_image(path: str) -> np.ndarray | None:
    """RGB [H, W, 3], uint8; None for a file that is not there, or is no picture of up to four channels."""
    try:
        content = np.frombuffer(fileio.get(path), np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except Exception:  # of any storage, and of decoders
        return None
    return None if pixels is None else to_rgb(pixels)


def resize_sample(sample: Any, old: tuple[int, int], new: tuple[int, int], score_thr: float) -> Any:
    """A copy of a data sample for an image of another size; predictions under `score_thr` are left out."""
    (H, W), (h, w) = old, new
    result = copy(sample)  # annotations are replaced below, never changed in place
    result = result.new() if hasattr(result, 'new') else result
    for field in ('gt_instances', 'pred_instances', 'ignored_instances'):
        if field not in result:
            continue
        instances = result.get(field).clone()
        if 'scores' in instances:
            instances = instances[instances.scores > score_thr]
        if 'bboxes' in instances:
            boxes = getattr(instances.bboxes, 'tensor', instances.bboxes).detach().cpu()
            instances.bboxes = boxes * boxes.new_tensor([w / W, h / H, w / W, h / H])
        if 'masks' in instances:
            masks = instances.masks
            masks = torch.as_tensor(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks).detach().cpu()
            instances.masks = _resize_masks(masks, new)
        setattr(result, field, instances)
    for field in MAPS:
        if field in result:
            maps = {}
            for key, labels in result.get(field).items():
                labels = torch.as_tensor(labels).detach().cpu()
                maps[key] = F.interpolate(labels[None].float(), size=new, mode='nearest')[0].to(labels.dtype)
            setattr(result, field, PixelData(**maps))
    return result


def _resize_masks(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[N, H, W] -> bool [N, h, w]."""
    if masks.shape[0] == 0:
        return torch.zeros((0, *size), dtype=torch.bool)
    return F.interpolate(masks[:, None].float(), size=size, mode='bilinear', align_corners=False)[:, 0] > 0.5


def add_caption(tile: np.ndarray, lines: Sequence[str], height: int | None = None) -> np.ndarray:
    """A picture with text below it, broken where it is too wide.

    Args:
        tile: RGB [h, w, 3].
        lines: Of the text.
        height: The picture is brought to this height with white first, so that the texts of a row are level.
    """
    size, step = 0.45, 18
    letters = max(8, int(tile.shape[1] / (cv2.getTextSize('n' * 20, FONT, size, 1)[0][0] / 20)))
    broken = [part for line in lines for part in textwrap.wrap(line, letters) or ['']]
    top = max(tile.shape[0], height or 0)
    result = np.full((top + step * len(broken) + 8, tile.shape[1], 3), 255, np.uint8)
    result[: tile.shape[0]] = tile
    for index, line in enumerate(broken):
        place = (2, top + step * (index + 1))
        cv2.putText(result, _ascii(line), place, FONT, size, (20, 20, 20), 1, cv2.LINE_AA)
    return result


def sheet(tiles: Sequence[np.ndarray], title: str, columns: int) -> np.ndarray:
    """Tiles in rows under a title, white between them, RGB [h, w, 3]."""
    gap, band = GAP, 44
    columns = min(columns, len(tiles))
    w = max(tile.shape[1] for tile in tiles)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    result = np.full((band + sum(heights) + len(rows) * gap, gap + columns * (w + gap), 3), 255, np.uint8)
    width = cv2.getTextSize(title, FONT, 1.0, 1)[0][0]
    size = min(1.0, (result.shape[1] - 2 * gap) / max(width, 1))
    cv2.putText(result, _ascii(title), (gap, 29), FONT, size, (20, 20, 20), 1, cv2.LINE_AA)
    top = band
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = gap + column * (w + gap)
            result[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        top += height + gap
    return result


def _ascii(text: str) -> str:
    """The letters that OpenCV's fonts have."""
    return text.encode('ascii', 'replace').decode()
