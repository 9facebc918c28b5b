"""Checks the entries of a COCO file before mmdet reads them.

mmdet drops what it cannot use without a word (a box of NaN, an unknown category), fails on some (a missing key) and
passes the rest on: a box that is infinitely wide, a mask of another size, a polygon that lets pycocotools allocate
without bound.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...utils.errors import few
from .kinds import BadDataError, Fault

__all__ = ['check_categories', 'check_entries']

LARGEST = 1e38
EDGE = 1.0  # pixels that a box may lie over the edge without a note


def check_categories(data: dict, path: str, classes: Sequence[str] | None, ordered: bool = True) -> list[Fault]:
    """The lists that a COCO file must have, and its categories against the config's classes.

    Args:
        data: What the file holds.
        path: Its name.
        classes: The config's classes in their order; None if it leaves them to the file.
        ordered: Whether they must have the file's order.

    Returns:
        A warning, if the file lacks the last classes only: mmdet numbers the others as the config does.

    Raises:
        BadDataError: if labels could not be told from it.
    """
    for key in ('images', 'annotations', 'categories'):
        entries = data.get(key, [] if key == 'annotations' else None)  # test data may have none
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise BadDataError(f'{path!r}: no list of {key}: it is no COCO file, or was not written to its end.')
    names, ids = [], []
    for category in data['categories']:
        if not _is_id(category.get('id')) or not isinstance(category.get('name'), str):
            raise BadDataError(f'{path!r}: category {category!r} needs an id and a name.')
        names.append(category['name'])
        ids.append(category['id'])
    for what, values in (('name', names), ('id', ids)):
        twice = [value for value, number in Counter(values).items() if number > 1]
        if twice:
            raise BadDataError(f'{path!r}: two categories have the {what} {twice[0]!r}.')
    if classes is None:
        return []
    missing = [name for name in classes if name not in names]
    told = f'{len(missing)} of the {len(classes)} classes of the config are no categories of this file: {few(missing)}.'
    known = list(classes[: len(classes) - len(missing)])
    if missing and (not known or not set(known) <= set(names)):
        raise BadDataError(
            f'{path!r}: {told}\nIt has {len(names)}: {few(names)}.\nSet metainfo=dict(classes=...) of every data set '
            'in the config to those that are to be learned, and num_classes of the heads of the model to their number.',
            'classes',
        )
    order = [name for name in names if name in classes]
    if ordered and order != known:
        raise BadDataError(
            f"{path!r}: mmdet numbers the classes in the file's order ({few(order)}), and the config has another "
            f'({few(classes)}). Write them in the same order.',
            'classes',
        )
    return [Fault('missing categories', path, told)] if missing else []


def check_entries(data: dict, path: str, masks: bool) -> tuple[list[Fault], dict]:
    """Looks at every image and every annotation.

    Args:
        data: What the file holds, with categories that `check_categories` accepts.
        path: Its name.
        masks: Whether masks are needed.

    Returns:
        The faults, and the content without what has an error; the same object if nothing has.
    """
    faults: list[Fault] = []
    images: dict[Any, dict] = {}
    for index, image in enumerate(data['images']):
        fault = _image_fault(image, images)
        if fault is None:
            images[image['id']] = image
        else:
            faults.append(Fault(fault[0], path, f'image {image.get("id", f"number {index + 1}")!r}: {fault[1]}'))
    names = Counter(image['file_name'] for image in images.values())
    faults += [Fault('file listed twice', path, name) for name, number in names.items() if number > 1]

    listed = {image['id'] for image in data['images'] if _is_id(image.get('id'))}
    categories = {category['id'] for category in data['categories']}
    kept, seen = [], set()
    annotations = data.get('annotations', [])
    for index, annotation in enumerate(annotations):
        dropped = False
        for kind, detail in _annotation_faults(annotation, seen, images, listed, categories, masks):
            name = annotation.get('id', f'number {index + 1}')
            image = images.get(annotation.get('image_id')) if _is_id(annotation.get('image_id')) else None
            where = f' of image {image["file_name"]!r}' if image else ''
            faults.append(Fault(kind, path, f'annotation {name!r}{where}: {detail}'))
            dropped |= kind not in NOTES
        if not dropped and annotation['image_id'] in images:
            kept.append(annotation)
            seen.add(annotation['id'])
    occupied = {annotation['image_id'] for annotation in kept}
    faults += [
        Fault('image without objects', path, image['file_name']) for id, image in images.items() if id not in occupied
    ]
    if len(kept) == len(annotations) and len(images) == len(data['images']):
        return faults, data
    return faults, {**data, 'images': list(images.values()), 'annotations': kept}


NOTES = ('zero-size box', 'box over the edge', 'short polygon')


def _image_fault(image: dict, known: dict) -> tuple[str, str] | None:
    for key in ('id', 'file_name', 'height', 'width'):
        if key not in image:
            return 'image entry', f'has no {key}'
    if not _is_id(image['id']) or not isinstance(image['file_name'], str) or not image['file_name']:
        return 'image entry', f'id {image["id"]!r} or file_name {image["file_name"]!r} is of another type'
    for key in ('height', 'width'):
        if not _finite(image[key]) or image[key] < 1 or image[key] != int(image[key]):
            return 'image entry', f'{key} is {image[key]!r}'
    if image['id'] in known:
        return 'duplicate image', f'{image["file_name"]!r} has the id of {known[image["id"]]["file_name"]!r}'
    return None


def _annotation_faults(
    annotation: dict, seen: set, images: dict, listed: set, categories: set, masks: bool
) -> Iterator[tuple[str, str]]:
    """(kind, detail): notes, and the first error."""
    for key in ('id', 'image_id', 'category_id', 'bbox', 'area'):
        if key not in annotation:
            yield 'annotation entry', f'has no {key}'
            return
    for key in ('id', 'image_id', 'category_id'):
        if not _is_id(annotation[key]):
            yield 'annotation entry', f'{key} is {annotation[key]!r}'
            return
    if annotation['id'] in seen:
        yield 'duplicate annotation', 'another one has this id'
        return
    if annotation['image_id'] not in images:
        if annotation['image_id'] not in listed:  # that of an image with an error goes with it
            yield 'unknown image', f'image_id {annotation["image_id"]!r} is no image of this file'
        return
    if annotation['category_id'] not in categories:
        yield 'unknown category', f'category_id {annotation["category_id"]!r} is no category of this file'
        return
    image = images[annotation['image_id']]
    for kind, detail in _box_faults(annotation, image['width'], image['height']):
        yield kind, detail
        if kind not in NOTES:
            return
    if masks:
        yield from _mask_faults(annotation.get('segmentation'), image['width'], image['height'])


def _box_faults(annotation: dict, W: float, H: float) -> Iterator[tuple[str, str]]:
    box = annotation['bbox']
    if not isinstance(box, list) or len(box) != 4:
        yield 'annotation entry', f'bbox is {str(box)[:80]}, and four numbers were expected'
    elif not all(map(_finite, box)) or not _finite(annotation['area']):
        yield 'box numbers', f'bbox {str(box)[:80]}, area {str(annotation["area"])[:40]}'
    else:
        x, y, w, h = box
        if w < 0 or h < 0:
            yield 'negative box', f'bbox {box} in an image of {W} x {H}'
        elif w < 1 or h < 1 or annotation['area'] <= 0:
            yield 'zero-size box', f'bbox {box}, area {annotation["area"]}'
        elif x >= W or y >= H or x + w <= 0 or y + h <= 0:
            yield 'box outside', f'bbox {box} in an image of {W} x {H}'
        elif min(x, y) < -EDGE or x + w > W + EDGE or y + h > H + EDGE:
            yield 'box over the edge', f'bbox {box} in an image of {W} x {H}'


def _mask_faults(mask: Any, W: float, H: float) -> Iterator[tuple[str, str]]:
    if not mask:
        yield 'mask', 'has no segmentation, and the config learns or measures masks'
    elif isinstance(mask, list):
        yield from _polygon_faults(mask, W, H)
    elif isinstance(mask, dict):
        yield from _run_faults(mask, W, H)
    else:
        yield 'mask', f'segmentation is {str(mask)[:60]}, and polygons or run lengths were expected'


def _polygon_faults(polygons: list, W: float, H: float) -> Iterator[tuple[str, str]]:
    short = 0
    for polygon in polygons:
        if not isinstance(polygon, list):
            yield 'mask', f'a polygon is a list of numbers, this is {str(polygon)[:60]}'
            return
        if len(polygon) < 6 or len(polygon) % 2:
            short += 1
            continue
        try:
            finite = math.isfinite(sum(polygon))  # NaN and inf stay in a sum
            low, high = min(polygon), max(polygon)
        except (TypeError, OverflowError):  # a whole number of JSON can have any number of digits
            finite = False
        if not finite:
            yield 'mask', f'a polygon has coordinates that are no numbers: {str(polygon)[:80]}'
            return
        if low < -max(W, H) or high > 2 * max(W, H):  # pycocotools walks along every edge
            yield 'mask', f'a polygon lies far outside its image of {W} x {H}: from {low} to {high}'
            return
    if short == len(polygons):
        yield 'mask', 'no polygon has three points'
    elif short:
        yield 'short polygon', f'{short} of {len(polygons)} polygons have less than three points'


def _run_faults(mask: dict, W: float, H: float) -> Iterator[tuple[str, str]]:
    size, counts = mask.get('size'), mask.get('counts')
    if not isinstance(size, list) or not isinstance(counts, (list, str)):
        yield 'mask', 'run lengths need a size and counts'
        return
    if size != [H, W]:
        yield 'mask size', f'the mask is {" x ".join(map(str, size[::-1]))}, its image {W} x {H}'
        return
    if isinstance(counts, str):
        runs = _decode_runs(counts)
    else:
        runs = np.asarray(counts) if all(type(count) is int for count in counts) else None
    if runs is None or (runs < 0).any() or (runs > H * W).any() or runs.sum() != H * W:  # a sum may run over
        yield 'mask', f'the run lengths do not fill {W} x {H} pixels'


def _decode_runs(text: str) -> np.ndarray | None:
    """The run lengths in COCO's compressed form; None if it is broken.

    Each number takes characters of 6 bits from ``'0'`` on: 5 of the number, lowest first, and one that says that more
    follow; the last one's highest bit is the sign. From the third on they are differences to the one before the last.
    """
    codes = np.frombuffer(text.encode('utf-8', 'surrogatepass'), np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero((codes & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 7:  # more than 35 bits
        return None
    place = np.arange(codes.size) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << (5 * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs = values.copy()
    if runs.size > 2:  # the first is not a base: runs 1, 3, 5, ... and 2, 4, 6, ... add up
        runs[1::2] = np.cumsum(values[1::2])
        runs[2::2] = np.cumsum(values[2::2])
    return runs


def _finite(value: Any) -> bool:
    """Whether it is a number that float32 can hold, and the sum of two of them, too."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) or (isinstance(value, float) and value.is_integer())
