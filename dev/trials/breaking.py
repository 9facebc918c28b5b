"""Faults to put into a Shapes data set on disk, for `broken_data.py`.

Each takes a random generator, the folder of the data set and a split, and breaks one thing there.
"""

import functools
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

__all__ = ['FAULTS', 'Breaker']

FOLDERS = {'detection': '{}', 'segmentation': '{}', 'classification': 'classes/{}'}


class Breaker(NamedTuple):
    """One fault: what `apply` does, the tasks it is for, and the kinds it may be found as; no kinds for a note.

    Attributes:
        fatal: Whether it stops a run in either mode.
        told: Warnings, of which there must be one; it has no kinds then.
    """

    apply: Callable[[np.random.Generator, Path, str, str], None]
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]
    fatal: bool
    told: tuple[str, ...]


FAULTS: dict[str, Breaker] = {}
ALL = tuple(FOLDERS)


def breaks(
    name: str, *kinds: str, tasks: tuple[str, ...] = ALL, fatal: bool = False, told: tuple[str, ...] = ()
) -> Callable:
    def register(function: Callable) -> Callable:
        FAULTS[name] = Breaker(function, tasks, kinds, fatal, told)
        return function

    return register


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def picture(rng: np.random.Generator, root: Path, split: str, task: str) -> Path:
    paths = sorted((root / FOLDERS[task].format(split)).rglob('*.png'))
    files = [path for path in paths if path.is_file() and not path.is_symlink() and path.stat().st_size > 200]
    return files[rng.integers(len(files))]


def encode(image: Image.Image, kind: str, path: Path, **options: object) -> None:
    image.save(path, kind, **options)


def read(path: Path) -> Image.Image:
    """Of what an earlier fault left unreadable, anything."""
    try:
        with Image.open(path) as image:
            return image.convert('RGB')
    except Exception:
        return Image.new('RGB', (64, 48))


def on_bytes(change: Callable[[np.random.Generator, bytes], bytes]) -> Callable:
    def apply(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
        path = picture(rng, root, split, task)
        path.write_bytes(change(rng, path.read_bytes()))

    return apply


def as_kind(kind: str, change: Callable[[Image.Image], Image.Image], **options: object) -> Callable:
    def apply(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
        path = picture(rng, root, split, task)
        encode(change(read(path)), kind, path, **options)

    return apply


def with_header(width: int, height: int) -> Callable:
    """A PNG that claims another size."""

    def change(rng: np.random.Generator, data: bytes) -> bytes:
        header = b'IHDR' + struct.pack('>II', width, height) + data[24:29]
        return data[:12] + header + struct.pack('>I', zlib.crc32(header)) + data[33:]

    return change


READING = ('unreadable', 'truncated')
breaks('empty picture', 'empty')(on_bytes(lambda rng, data: b''))
breaks('text as picture', *READING)(on_bytes(lambda rng, data: b'<html>404 not found</html>'))
breaks('zeros as picture', *READING)(on_bytes(lambda rng, data: bytes(len(data))))
breaks('cut PNG', *READING)(on_bytes(lambda rng, data: data[: int(len(data) * rng.uniform(0.05, 0.97))]))
breaks('damaged PNG', *READING)(on_bytes(lambda rng, data: data[:60] + rng.bytes(40) + data[100:]))
breaks('PNG of no size', *READING)(on_bytes(with_header(0, 0)))
breaks('PNG of gigapixels', *READING)(on_bytes(with_header(60000, 60000)))


@breaks('cut JPEG', *READING)
def cut_jpeg(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    path = picture(rng, root, split, task)
    encode(read(path), 'JPEG', path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * rng.uniform(0.1, 0.95))])


@breaks('missing picture', 'missing', tasks=('detection',))
def missing_picture(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    picture(rng, root, split, task).unlink()


@breaks('link to nothing', 'missing', tasks=('detection',))
def link_to_nothing(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    path = picture(rng, root, split, task)
    path.unlink()
    path.symlink_to('nowhere.png')


@breaks('folder as picture', 'no file', tasks=('detection',))
def folder_as_picture(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    path = picture(rng, root, split, task)
    path.unlink()
    path.mkdir()


@breaks('pipe as picture', 'no file', tasks=('detection',))
def pipe_as_picture(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    path = picture(rng, root, split, task)
    path.unlink()
    os.mkfifo(path)


@breaks('turned by EXIF', 'image size', 'map size', tasks=('detection', 'segmentation'))
def turned(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    path = picture(rng, root, split, task)
    exif = Image.Exif()
    exif[0x112] = 6
    encode(read(path), 'JPEG', path, exif=exif)


breaks('picture of one pixel', 'image size', 'map size', tasks=('detection', 'segmentation'))(
    as_kind('PNG', lambda image: image.resize((1, 1)))
)
breaks('grey')(as_kind('PNG', lambda image: image.convert('L')))
breaks('grey with alpha')(as_kind('PNG', lambda image: image.convert('LA')))
breaks('one bit')(as_kind('PNG', lambda image: image.convert('1')))
breaks('RGBA')(as_kind('PNG', lambda image: image.convert('RGBA')))
breaks('palette')(as_kind('PNG', lambda image: image.convert('P')))
breaks('CMYK')(as_kind('JPEG', lambda image: image.convert('CMYK')))
breaks('JPEG called PNG')(as_kind('JPEG', lambda image: image))
breaks('progressive JPEG')(as_kind('JPEG', lambda image: image, progressive=True))
breaks('WebP called PNG')(as_kind('WEBP', lambda image: image))
breaks('BMP called PNG')(as_kind('BMP', lambda image: image))
two_pages = {'save_all': True, 'append_images': [Image.new('RGB', (9, 9))]}
breaks('TIFF of two pages')(as_kind('TIFF', lambda image: image, **two_pages))
breaks('transparent palette')(as_kind('PNG', lambda image: image.convert('P'), transparency=0))


@breaks('16-bit')
def sixteen_bits(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    path = picture(rng, root, split, task)
    cv2.imwrite(str(path), np.asarray(read(path)).astype(np.uint16) * 257)


# --------------------------------------------------------------------------------------------------------------------
# Annotations of detection


def ann_file(root: Path, split: str) -> Path:
    return root / 'annotations' / f'instances_{split}.json'


def on_json(function: Callable) -> Callable:
    """`function` changes the content of the COCO file."""

    @functools.wraps(function)
    def apply(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
        path = ann_file(root, split)
        try:
            data = json.loads(path.read_bytes())
            function(rng, data)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError):  # an earlier fault took it all
            return
        path.write_text(json.dumps(data))

    return apply


def on_entry(name: str, *kinds: str, among: str = 'annotations') -> Callable:
    def register(function: Callable) -> Callable:
        def change(rng: np.random.Generator, data: dict) -> None:
            entries = data[among]
            function(rng, entries[rng.integers(len(entries))], data)

        breaks(name, *kinds, tasks=('detection',))(on_json(change))
        return function

    return register


def setting(name: str, key: str, value: object, *kinds: str, among: str = 'annotations') -> None:
    on_entry(name, *kinds, among=among)(lambda rng, entry, data: entry.__setitem__(key, value))


def lacking(name: str, key: str, *kinds: str, among: str = 'annotations') -> None:
    on_entry(name, *kinds, among=among)(lambda rng, entry, data: entry.pop(key))


NAN, INF = math.nan, math.inf
setting('NaN box', 'bbox', [NAN, 2.0, 9.0, 9.0], 'box numbers')
setting('infinite box', 'bbox', [2.0, 2.0, INF, 9.0], 'box numbers')
setting('negative box', 'bbox', [20.0, 20.0, -9.0, 9.0], 'negative box')
setting('zero box', 'bbox', [20.0, 20.0, 0.0, 9.0])
setting('box outside', 'bbox', [500.0, 20.0, 9.0, 9.0], 'box outside')
setting('box over the edge', 'bbox', [-5.0, -5.0, 20.0, 20.0])
setting('box of three', 'bbox', [2.0, 2.0, 9.0], 'annotation entry')
setting('box of text', 'bbox', ['2', '2', '9', '9'], 'box numbers')
setting('box of null', 'bbox', None, 'annotation entry')
setting('NaN area', 'area', NAN, 'box numbers')
setting('zero area', 'area', 0)
setting('unknown category', 'category_id', 99, 'unknown category')
setting('category of a list', 'category_id', [1], 'annotation entry')
setting('unknown image', 'image_id', 987654, 'unknown image')
lacking('no box', 'bbox', 'annotation entry')
lacking('no area', 'area', 'annotation entry')
lacking('no annotation id', 'id', 'annotation entry')
lacking('no image_id', 'image_id', 'annotation entry')
lacking('no mask', 'segmentation', 'mask')
setting('empty mask', 'segmentation', [], 'mask')
setting('polygon of two points', 'segmentation', [[1.0, 1.0, 9.0, 9.0]], 'mask')
setting('odd polygon', 'segmentation', [[1.0, 1.0, 9.0, 9.0, 3.0, 4.0, 5.0]], 'mask')
setting('NaN polygon', 'segmentation', [[1.0, 1.0, NAN, 9.0, 3.0, 9.0]], 'mask')
setting('polygon of text', 'segmentation', [['a', 'b', 'c', 'd', 'e', 'f']], 'mask')
setting('far polygon', 'segmentation', [[1.0, 1.0, 1e9, 9.0, 3.0, 1e9]], 'mask')
setting('short and whole polygon', 'segmentation', [[1.0, 1.0, 9.0], [2.0, 2.0, 9.0, 2.0, 9.0, 9.0]])
setting('mask of another size', 'segmentation', {'size': [9, 9], 'counts': [40, 41]}, 'mask size')
setting('runs too long', 'segmentation', {'size': [48, 64], 'counts': [40, 10**7]}, 'mask')
setting('negative runs', 'segmentation', {'size': [48, 64], 'counts': [-40, 3112]}, 'mask')
setting('broken compressed runs', 'segmentation', {'size': [48, 64], 'counts': 'ooooo'}, 'mask')
setting('mask without counts', 'segmentation', {'size': [48, 64]}, 'mask')
setting('mask of a number', 'segmentation', 7, 'mask')
setting('box of truth values', 'bbox', [True, True, True, True], 'box numbers', 'annotation entry')
setting('box of lists', 'bbox', [[2.0], [2.0], [9.0], [9.0]], 'box numbers', 'annotation entry')
setting('box beyond all numbers', 'bbox', [2.0, 2.0, 1e308, 1e308], 'box outside', 'box numbers')
setting('box of 400 digits', 'bbox', [2, 2, 10**400, 9], 'box numbers')
setting('polygon of 400 digits', 'segmentation', [[1, 1, 10**400, 9, 3, 9]], 'mask')
setting('image of 400 digits', 'width', 10**400, 'image entry', among='images')
setting('infinite area', 'area', INF, 'box numbers')
setting('category of text', 'category_id', '1', 'annotation entry', 'unknown category')
setting('category of null', 'category_id', None, 'annotation entry')
setting('infinite polygon', 'segmentation', [[1.0, 1.0, INF, 9.0, 3.0, INF]], 'mask')
setting('polygon of dicts', 'segmentation', [{'x': 1.0, 'y': 2.0}], 'mask')
setting('runs of text', 'segmentation', {'size': [48, 64], 'counts': ['a', 'b']}, 'mask')
setting('runs of half a character', 'segmentation', {'size': [48, 64], 'counts': 'a\ud800'}, 'mask')
setting('mask of a negative size', 'segmentation', {'size': [-48, -64], 'counts': [3072]}, 'mask', 'mask size')
setting('image of a number', 'file_name', 7, 'image entry', among='images')
setting('image of 5000 letters', 'file_name', 'x' * 5000, 'missing', 'no file', 'image entry', among='images')
setting('image of a zero byte', 'file_name', 'a\0b.png', 'missing', 'no file', 'image entry', among='images')
setting('image of a folder', 'file_name', '.', 'no file', among='images')
setting('image of negative width', 'width', -64, 'image entry', among='images')
setting('image of no height', 'height', 0, 'image entry', among='images')
setting('image of NaN width', 'width', NAN, 'image entry', among='images')
setting('image of another size', 'height', 777, 'image size', 'mask size', among='images')
setting('image of no file', 'file_name', 'nowhere.png', 'missing', among='images')
setting('image of null', 'file_name', None, 'image entry', among='images')
lacking('image without width', 'width', 'image entry', among='images')
lacking('image without id', 'id', 'image entry', among='images')


@on_entry('duplicate annotation', 'duplicate annotation')
def duplicate_annotation(rng: np.random.Generator, entry: dict, data: dict) -> None:
    data['annotations'].append(dict(entry))


@on_entry('duplicate image', 'duplicate image', among='images')
def duplicate_image(rng: np.random.Generator, entry: dict, data: dict) -> None:
    data['images'].append(dict(entry))


@on_entry('image without objects', among='images')
def without_objects(rng: np.random.Generator, entry: dict, data: dict) -> None:
    data['annotations'] = [other for other in data['annotations'] if other['image_id'] != entry['id']]


def whole(name: str) -> Callable:
    return breaks(name, 'annotation file', 'classes', 'no samples', tasks=('detection',), fatal=True)


def lacks(name: str, *told: str) -> Callable:
    """Of the whole file: what makes a run mean less than it seems."""
    return breaks(name, tasks=('detection',), told=told)


def in_all(key: str, value: object) -> Callable:
    return on_json(lambda rng, data: [entry.update({key: value}) for entry in data['annotations']])


def renumbered(rng: np.random.Generator, data: dict) -> None:
    for number, entry in enumerate(data['annotations']):
        entry['id'] = number


def without_the_last(rng: np.random.Generator, data: dict) -> None:
    last = data['categories'].pop()
    data['annotations'] = [entry for entry in data['annotations'] if entry['category_id'] != last['id']]


NOTHING = ('nothing to learn', 'nothing to measure')
lacks('all crowds', *NOTHING)(in_all('iscrowd', 1))
lacks('all ignored', *NOTHING)(in_all('ignore', 1))
lacks('no annotations', *NOTHING)(on_json(lambda rng, data: data.update(annotations=[])))
lacks('one class alone', 'class without objects')(in_all('category_id', 1))
lacks('the last category is missing', 'missing categories')(on_json(without_the_last))
lacks('annotations numbered from 0')(on_json(renumbered))
whole('no images')(on_json(lambda rng, data: data.update(images=[])))
whole('no categories')(on_json(lambda rng, data: data.pop('categories')))
whole('annotations of text')(on_json(lambda rng, data: data.update(annotations='none')))
whole('category twice')(on_json(lambda rng, data: data['categories'].append(data['categories'][0])))
whole('other categories')(on_json(lambda rng, data: data['categories'][0].update(name='cat')))
whole('categories in another order')(on_json(lambda rng, data: data['categories'].reverse()))


@whole('cut JSON')
def cut_json(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    data = ann_file(root, split).read_bytes()
    ann_file(root, split).write_bytes(data[: len(data) // 2])


@whole('JSON of a list')
def list_json(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    ann_file(root, split).write_text('[]')


@whole('JSON of bytes')
def bytes_json(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    ann_file(root, split).write_bytes(b'\xff\xfe\x00' + rng.bytes(99))


@whole('missing JSON')
def missing_json(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    ann_file(root, split).unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------------------
# Maps of segmentation


def on_map(name: str, *kinds: str) -> Callable:
    def register(function: Callable) -> Callable:
        def apply(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
            paths = sorted((root / 'semantic' / split).glob('*.png'))
            function(rng, paths[rng.integers(len(paths))])

        breaks(name, *kinds, tasks=('segmentation',))(apply)
        return function

    return register


def drawn(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    return image if image is not None and image.ndim == 2 else np.ones((48, 64), np.uint8)


on_map('missing map', 'missing')(lambda rng, path: path.unlink())
on_map('empty map', 'empty')(lambda rng, path: path.write_bytes(b''))
on_map('cut map', *READING)(lambda rng, path: path.write_bytes(path.read_bytes()[:80]))
on_map('map of another size', 'map size')(lambda rng, path: cv2.imwrite(str(path), np.ones((9, 9), np.uint8)))
on_map('map of colours', 'map format')(lambda rng, path: cv2.imwrite(str(path), cv2.merge([drawn(path)] * 3)))
on_map('map of wrong labels', 'map values')(lambda rng, path: cv2.imwrite(str(path), drawn(path) | 128))
on_map('16-bit map', 'map values')(lambda rng, path: cv2.imwrite(str(path), drawn(path).astype(np.uint16) + 256))
on_map('16-bit map of small labels')(lambda rng, path: cv2.imwrite(str(path), drawn(path).astype(np.uint16)))
on_map('unlabelled map')(lambda rng, path: cv2.imwrite(str(path), drawn(path) * 0))


def all_maps(name: str, change: Callable[[np.ndarray], np.ndarray], *told: str) -> None:
    def apply(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
        for path in sorted((root / 'semantic' / split).glob('*.png')):
            cv2.imwrite(str(path), change(drawn(path)))

    breaks(name, tasks=('segmentation',), told=told)(apply)


all_maps('maps of 0 and 255', lambda labels: np.where(labels > 0, 255, 0).astype(np.uint8), 'class without pixels')
all_maps('maps of one class', lambda labels: labels * 0, 'class without pixels')
all_maps('maps of 255', lambda labels: labels * 0 + 255, 'class without pixels', *NOTHING)


@breaks('no pictures', 'no samples', tasks=('segmentation',), fatal=True)
def no_pictures(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    for path in (root / split).glob('*.png'):
        path.rename(path.with_suffix('.jpeg'))


# --------------------------------------------------------------------------------------------------------------------
# Folders of classification


def folders(root: Path, split: str) -> list[Path]:
    return sorted(path for path in (root / 'classes' / split).iterdir() if path.is_dir())


@breaks('another folder', 'classes', tasks=('classification',), fatal=True)
def another_folder(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    (root / 'classes' / split / '.ipynb_checkpoints').mkdir(exist_ok=True)


@breaks('folder taken away', 'classes', tasks=('classification',), fatal=True)
def folder_taken_away(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    shutil.rmtree(folders(root, split)[rng.integers(3)])


@breaks('folder renamed', 'classes', tasks=('classification',), fatal=True)
def folder_renamed(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    path = folders(root, 'val')[0]
    path.rename(path.with_name('another'))


@breaks('folder without pictures', tasks=('classification',))
def folder_without_pictures(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    chosen = folders(root, split)
    for path in chosen[rng.integers(len(chosen))].iterdir():
        path.unlink()


@breaks('other files', tasks=('classification',))
def other_files(rng: np.random.Generator, root: Path, split: str, task: str) -> None:
    (root / 'classes' / split / 'notes.txt').write_text('no picture')
    (folders(root, split)[0] / 'Thumbs.db').write_bytes(b'no picture')
