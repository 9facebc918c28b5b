"""Shapes: a drawn data set with boxes, instance masks, semantic maps and class folders.

Detection, segmentation and classification configs run on it before any real data is on disk. Every picture is made
from random numbers that depend on (seed, split, index, size) alone, so the same call writes the same bytes, and a
larger set starts with the pictures of a smaller one.

    out_dir/
      shapes.json                       the parameters and the format version
      train/000000.png                  scenes, RGB
      val/000000.png
      annotations/instances_train.json  COCO: boxes, and visible masks as uncompressed RLE
      annotations/instances_val.json
      semantic/train/000000.png         ADE20K style: 0 unlabelled (never used), 1 background, 2.. `CLASSES`
      semantic/val/000000.png
      classes/train/circle/000000.png   one shape a picture, a folder a class
      classes/val/circle/000000.png

What is on a picture is up to `scenes`.
"""

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from ...utils.console import say
from ...utils.files import locked
from .scenes import CLASSES, PALETTE, Scene, check_int, check_size, render_scene

__all__ = [
    'CLASSES',
    'PALETTE',
    'SEMANTIC_CLASSES',
    'SEMANTIC_PALETTE',
    'Scene',
    'default_shapes_dir',
    'make_shapes',
    'mask_to_rle',
    'render_scene',
    'rle_to_mask',
]

SEMANTIC_CLASSES = ('background', *CLASSES)
SEMANTIC_PALETTE = ((64, 68, 75), *PALETTE)

FORMAT_VERSION = 2  # raise it whenever a picture or a label of an unchanged call would change
CLASS_SCALE = (0.40, 0.75)  # the only object of a classification picture
STALE_SECONDS = 24 * 3600

_SPLITS = ('train', 'val')
_LAYOUT = (
    *_SPLITS,
    'annotations/instances_train.json',
    'annotations/instances_val.json',
    *(f'semantic/{split}' for split in _SPLITS),
    *(f'classes/{split}/{name}' for split in _SPLITS for name in CLASSES),
)


# --------------------------------------------------------------------------------------------------------------------
# Labels


def mask_to_rle(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths of a bool mask [H, W]: down the columns, the first run counts zeros."""
    flat = mask.ravel(order='F')
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(ends, prepend=0, append=flat.size).tolist()
    return {'size': list(mask.shape), 'counts': [0, *counts] if flat[0] else counts}


def rle_to_mask(rle: dict) -> np.ndarray:
    """The bool mask [H, W] of COCO's uncompressed run lengths; the inverse of `mask_to_rle`."""
    counts = np.asarray(rle['counts'])
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(rle['size'], order='F')


def _mask_to_box(mask: np.ndarray) -> list[float]:
    """The tight box [x, y, w, h] of a mask [H, W] that is not empty, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = rows[0], columns[0]
    return [float(left), float(top), float(columns[-1] - left + 1), float(rows[-1] - top + 1)]


def _semantic_map(scene: Scene) -> np.ndarray:
    """1 on the background, label + 2 on the shapes, [H, W], uint8."""
    semantic = np.ones(scene.image.shape[:2], dtype=np.uint8)
    for label, mask in zip(scene.labels, scene.masks, strict=True):
        semantic[mask] = label + 2
    return semantic


# --------------------------------------------------------------------------------------------------------------------
# The data set on disk


def default_shapes_dir(
    size: int | Sequence[int] = 128,
    num_train: int = 400,
    num_val: int = 80,
    seed: int = 0,
    root: str | os.PathLike = 'data/shapes',
) -> Path:
    """A folder name that tells the parameters, so that different sets never meet.

    Raises:
        ValueError: as `make_shapes` does.
    """
    (H, W), num_train, num_val, seed = _check_parameters(size, num_train, num_val, seed)
    return Path(root) / f'{H}x{W}-train{num_train}-val{num_val}-seed{seed}'


def make_shapes(
    out_dir: str | os.PathLike,
    *,
    size: int | Sequence[int] = 128,
    num_train: int = 400,
    num_val: int = 80,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the data set, whole or not at all.

    It grows in a hidden folder beside `out_dir` and is renamed as the last act. A finished set with the same
    parameters is left as it is; whatever else stands in `out_dir` is never touched.

    Args:
        out_dir: The data set's folder: absent, empty, or a set made by an equal call.
        size: Edge of square images, or (H, W), in pixels, at least 32.
        num_train: Training scenes; the class folders get about as many pictures in all.
        num_val: Validation scenes, likewise.
        seed: From 0 to 2**32 - 1.
        progress: Called as progress(done, total) after each picture.

    Returns:
        `out_dir`.

    Raises:
        ValueError: if a parameter is out of range, or `out_dir` holds something else.
        OSError: if the disk refuses; nothing is left behind then.
    """
    size, num_train, num_val, seed = _check_parameters(size, num_train, num_val, seed)
    parameters = {
        'format': 'mmext_backbones.shapes',
        'version': FORMAT_VERSION,
        'size': list(size),
        'num_train': num_train,
        'num_val': num_val,
        'seed': seed,
        'classes': list(CLASSES),
    }
    out_dir = Path(out_dir)
    target = out_dir.resolve()  # through links, so that the rename stays on one file system
    if _is_finished(target, parameters):
        return out_dir

    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    building = target.parent / f'{_building_prefix(target)}{secrets.token_hex(8)}'
    try:
        building.mkdir()
        _write_all(building, size, {'train': num_train, 'val': num_val}, seed, progress)
        _write(building / 'shapes.json', json.dumps(parameters, indent=2).encode() + b'\n')
        try:
            building.rename(target)
        except OSError as error:
            taken = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
            if not (taken and _is_finished(target, parameters)):  # another process may have been first
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)  # already gone after the rename
    return out_dir


def _check_parameters(
    size: int | Sequence[int], num_train: int, num_val: int, seed: int
) -> tuple[tuple[int, int], int, int, int]:
    return (
        check_size(size),
        check_int('num_train', num_train, 1, 'an integer of at least 1'),
        check_int('num_val', num_val, 1, 'an integer of at least 1'),
        check_int('seed', seed, 0, 'an integer from 0 to 2**32 - 1', 2**32 - 1),
    )


def _is_finished(target: Path, parameters: dict) -> bool:
    """True for an equal set, False where nothing stands; anything else raises ValueError."""
    if not target.exists():
        return False
    if not target.is_dir():
        raise ValueError(f'out_dir={str(target)!r} is a file: expected a folder to be made')
    if not any(target.iterdir()):
        return False
    try:
        found = json.loads((target / 'shapes.json').read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get('format') != parameters['format']:
        raise ValueError(
            f'out_dir={str(target)!r} holds files that are no Shapes data set: expected an absent or empty folder'
        )
    differences = [
        f'{key} is {found.get(key)!r} there, {value!r} asked for'
        for key, value in parameters.items()
        if found.get(key) != value
    ]
    if differences:
        raise ValueError(
            f'out_dir={str(target)!r} holds another Shapes data set ({"; ".join(differences)}): expected equal '
            'parameters, or another folder'
        )
    missing = [name for name in _LAYOUT if not (target / name).exists()]
    if missing:
        raise ValueError(
            f'out_dir={str(target)!r} holds a damaged Shapes data set without {missing[0]!r}: expected a whole one; '
            'remove the folder to make it anew'
        )
    return True


def _building_prefix(target: Path) -> str:
    return f'.{target.name}.building-'


def _remove_stale(target: Path) -> None:
    """Removes what killed runs left beside `target`, once it is too old to be a run of now."""
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            if path.name.startswith(_building_prefix(target)) and time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    """The one place where file contents reach the disk."""
    try:
        path.write_bytes(data)
    except OSError as error:
        if error.filename is None:  # a full disk is reported without the file
            error.filename = str(path)
        raise


def _write_png(path: Path, image: np.ndarray) -> None:
    """Writes RGB [H, W, 3] or a single channel [H, W], uint8."""
    if image.ndim == 3:
        image = image[..., ::-1]  # OpenCV expects BGR
    _, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    _write(path, data.tobytes())


def _rng(seed: int, stream: str, index: int, size: tuple[int, int]) -> np.random.Generator:
    streams = ('train', 'val', 'classes/train', 'classes/val')
    return np.random.default_rng([seed, streams.index(stream), index, *size])


def _write_all(
    root: Path,
    size: tuple[int, int],
    num_scenes: dict[str, int],
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Writes every picture and annotation under `root`; `num_scenes` is split -> number of scenes."""
    # one picture of each class at least: empty class folders trip the readers of such trees
    per_class = {split: math.ceil(num / len(CLASSES)) for split, num in num_scenes.items()}
    total = sum(num_scenes.values()) + len(CLASSES) * sum(per_class.values())
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    (root / 'annotations').mkdir()
    for split, num in num_scenes.items():
        _write_scenes(root, split, num, size, seed, step)
        _write_class_folders(root, split, per_class[split], size, seed, step)


def _write_scenes(root: Path, split: str, num: int, size: tuple[int, int], seed: int, step: Callable[[], None]) -> None:
    """One split's scenes, semantic maps and COCO file."""
    H, W = size
    for folder in (root / split, root / 'semantic' / split):
        folder.mkdir(parents=True)
    images, annotations = [], []
    for index in range(num):
        scene = render_scene(_rng(seed, split, index, size), size)
        name = f'{index:06d}.png'
        _write_png(root / split / name, scene.image)
        _write_png(root / 'semantic' / split / name, _semantic_map(scene))
        images.append({'id': index, 'file_name': name, 'height': H, 'width': W})
        for label, mask in zip(scene.labels.tolist(), scene.masks, strict=True):
            annotations.append(
                {
                    'id': len(annotations) + 1,  # from 1: pycocotools reads a match with id 0 as no match
                    'image_id': index,
                    'category_id': label + 1,
                    'bbox': _mask_to_box(mask),
                    'area': int(np.count_nonzero(mask)),
                    'iscrowd': 0,
                    'segmentation': mask_to_rle(mask),
                }
            )
        step()
    coco = {
        'info': {'description': f'Shapes {split}, drawn by mmext_backbones', 'version': str(FORMAT_VERSION)},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': [{'id': i + 1, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(CLASSES)],
    }
    _write(root / 'annotations' / f'instances_{split}.json', json.dumps(coco, separators=(',', ':')).encode())


def _write_class_folders(
    root: Path, split: str, per_class: int, size: tuple[int, int], seed: int, step: Callable[[], None]
) -> None:
    """One split's pictures of single shapes."""
    for label, name in enumerate(CLASSES):
        folder = root / 'classes' / split / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            rng = _rng(seed, f'classes/{split}', number * len(CLASSES) + label, size)
            scene = render_scene(rng, size, labels=(label,), scale=CLASS_SCALE)
            _write_png(folder / f'{number:06d}.png', scene.image)
            step()


def make_default_shapes() -> Path:
    """The Shapes data set of the default parameters, drawn now if it is not there yet."""
    path = default_shapes_dir()
    with locked(path.parent / '.lock'):  # one process draws, and the others find it drawn
        if not path.exists():
            say(f'Drawing the Shapes data set in {path} ...')
        return make_shapes(path)
