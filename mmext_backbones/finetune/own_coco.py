"""Prepares a person's own COCO file for a training: reads, checks, splits and writes it beside the run.

What is given stays as it is. The copies have what exporters often leave out or number otherwise, and mmdet or
pycocotools need: `area` and `iscrowd` of every annotation, ids from 1 (pycocotools takes a match with annotation 0 for
none), and the categories that are learned, numbered from 1 and equal in both files.
"""

import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..datasets.bad_data.coco import check_categories
from ..utils.errors import UserError
from ..utils.files import keep_inputs, write_whole
from ..utils.words import plural

__all__ = ['OwnCoco', 'OwnSplit', 'read_own_coco']

ID = (int, str)
MIN_TO_SPLIT = 5  # images with annotations; with fewer, one picture decides whether a metric is good


@dataclass(frozen=True)
class OwnSplit:
    """Training or validation data.

    Attributes:
        images: the folder that file names count from.
        annotations: the COCO file that was written.
        num_images: images in it.
        num_empty: those of them without annotations.
    """

    images: Path
    annotations: Path
    num_images: int
    num_empty: int


@dataclass(frozen=True)
class OwnCoco:
    """What a config has to know of the data.

    Attributes:
        classes: names of what is learned, in the order of the files.
        train, val: the two parts.
        masks: whether every annotation has one.
        size: median width and height of the training images, in pixels.
        notes: what a person should know, a line each.
    """

    classes: tuple[str, ...]
    train: OwnSplit
    val: OwnSplit
    masks: bool
    size: tuple[int, int]
    notes: tuple[str, ...]


def read_own_coco(
    images: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    val_images: str | Path | None = None,
    val_annotations: str | Path | None = None,
    val_fraction: float = 0.2,
    masks: bool | None = None,
    seed: int = 0,
) -> OwnCoco:
    """Reads one COCO file and splits it, or one for training and one for validation.

    Args:
        images: The folder of the images.
        annotations: The COCO file.
        out: A folder; `annotations/train.json` and `annotations/val.json` are written there.
        val_images: The folder of the validation images; `images` when None.
        val_annotations: The COCO file of the validation; when None, a part of `annotations` is kept for it.
        val_fraction: That part.
        masks: Whether masks are learned; when None, if every annotation has one.
        seed: Of the split.

    Raises:
        UserError: if the files cannot be used, saying what is wrong and what helps.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f'a validation part of {val_fraction}: expected a number between 0 and 1, such as 0.2')
    images, annotations = Path(images), Path(annotations)
    data = {'train': _read(annotations, images)}
    folders = {'train': images, 'val': Path(val_images or images)}
    if val_annotations is not None:
        data['val'] = _read(Path(val_annotations), folders['val'])
        _check_apart(data, annotations, Path(val_annotations), folders)
    elif val_images is not None:
        raise UserError(f'validation images in {val_images}, and no annotations of them: name their COCO file, too.')
    written = [Path(out) / 'annotations' / f'{name}.json' for name in ('train', 'val')]
    keep_inputs(f'--out {str(out)!r}', written, filter(None, (annotations, val_annotations)))
    classes, notes = _classes(data, annotations)
    masks, told = _masks(data, masks)
    notes += told
    if val_annotations is None:
        data = _split(data['train'], classes, val_fraction, seed, annotations)
        notes.append(f'{len(data["val"]["images"])} of the images are kept for validation, drawn with seed {seed}')

    measured = {annotation['category_id'] for annotation in data['val']['annotations']}
    never = [
        each['name'] for each in data['val']['categories'] if each['id'] not in measured and each['name'] in classes
    ]
    if never:
        notes.append(f'learned and not measured, since no validation annotation is of them: {", ".join(never)}')

    splits = {}
    for name, content in data.items():
        content = _written(content, classes)
        path = Path(out) / 'annotations' / f'{name}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content))
        occupied = {annotation['image_id'] for annotation in content['annotations']}
        empty = sum(image['id'] not in occupied for image in content['images'])
        splits[name] = OwnSplit(folders[name], path, len(content['images']), empty)
    if splits['train'].num_empty:
        empty = plural(splits['train'].num_empty, 'training image')
        notes.append(f'{empty} without objects: mmdet leaves what has none out of training')
    size = tuple(round(median(_edge(image, key) for image in data['train']['images'])) for key in ('width', 'height'))
    return OwnCoco(classes, splits['train'], splits['val'], masks, size, tuple(notes))


def _read(path: Path, images: Path) -> dict:
    """The content of a COCO file with images, annotations and categories that know each other."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f'there is no file {str(path)!r}: name the COCO file of the annotations.') from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{str(path)!r} cannot be read as JSON: {error}') from error
    if not isinstance(data, dict):
        raise UserError(f'{str(path)!r} holds a {type(data).__name__}: a COCO file is a dict of lists.')
    check_categories(data, str(path), None)
    for category in data['categories']:
        if category['name'] != category['name'].strip() or not category['name']:
            raise UserError(
                f'{str(path)!r}: the category name {category["name"]!r} is empty, or begins or ends with a space. '
                'Correct it in the file; spaces inside a name are welcome.'
            )
    if not data['images']:
        raise UserError(f'{str(path)!r}: its list of images is empty.')
    for image in data['images']:
        if not isinstance(image.get('id'), ID) or not isinstance(image.get('file_name'), str):
            raise UserError(f'{str(path)!r}: the image {image!r} needs an id and a file_name.')
    if not data.get('annotations'):
        raise UserError(
            f'{str(path)!r}: no annotation in {plural(len(data["images"]), "image")}: nothing to learn from. '
            'Is it the right file? Those of test data have none.'
        )
    for key, meaning in (('iscrowd', 'a crowd'), ('ignore', 'to be ignored')):
        if all(annotation.get(key) for annotation in data['annotations']):
            raise UserError(
                f'{str(path)!r}: every annotation is {meaning} ({key}: 1), from which nothing is learned and by which '
                f'nothing is measured. Some exporters of masks write that: set {key} to 0.'
            )
    for what, key, known in (('category', 'category_id', 'categories'), ('image', 'image_id', 'images')):
        ids = {entry['id'] for entry in data[known]}
        values = [annotation.get(key) for annotation in data['annotations']]
        strangers = Counter(str(value) for value in values if not isinstance(value, ID) or value not in ids)
        if strangers:
            first, _ = strangers.most_common(1)[0]
            raise UserError(
                f'{str(path)!r}: {sum(strangers.values())} of {len(values)} annotations have a {key} that is no {what} '
                f'of the file, most of them {first}. Add it to the list of {known}, or remove these annotations.'
            )
    _check_folder(images, [image['file_name'] for image in data['images']], path)
    return data


def _check_folder(images: Path, names: list[str], path: Path) -> None:
    """Whether the file names count from this folder. Single missing files are found when the data is checked."""
    if not images.is_dir():
        raise UserError(f'there is no folder {str(images)!r}: name the folder of the images.')
    if any(_is_file(images / name) for name in names):
        return
    name = names[0]
    better = next((parent for parent in images.resolve().parents if _is_file(parent / name)), None)
    hint = f'They count from {str(better)!r}: name that folder.' if better is not None else ''
    if not hint and _is_file(images / Path(name).name):
        hint = f'There is {str(images / Path(name).name)!r}: correct the file_name entries of the file.'
    raise UserError(
        f'none of the {len(names)} images of {str(path)!r} is in {str(images)!r}: the first would be '
        f'{str(images / name)!r}. {hint}'.rstrip()
    )


def _is_file(path: Path) -> bool:
    """Also of names that are longer than any system has them."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _check_apart(data: dict[str, dict], train: Path, val: Path, folders: dict[str, Path]) -> None:
    """A picture that is trained on says nothing in a validation."""
    files = {
        name: {(folders[name] / str(image['file_name'])).resolve() for image in content['images']}
        for name, content in data.items()
    }
    both = sorted(files['train'] & files['val'])
    if both:
        raise UserError(
            f'{plural(len(both), "image")} in {str(train)!r} and in {str(val)!r}, the first is {str(both[0])!r}: the '
            'validation would measure what was learned by heart. Remove them from one of the two.'
        )


def _classes(data: dict[str, dict], path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The categories with annotations in the training data, in the order of its file; and what is left out."""
    used = {}
    for name, content in data.items():
        names = {category['id']: category['name'] for category in content['categories']}
        used[name] = {names[annotation['category_id']] for annotation in content['annotations']}
    listed = [category['name'] for category in data['train']['categories']]
    classes = tuple(name for name in listed if name in used['train'])
    notes = []
    unused = [name for name in listed if name not in classes]
    if unused:
        notes.append(f'left out, since no training annotation is of them: {", ".join(unused)}')
    only_val = used.get('val', set()) - set(classes)
    if only_val:
        raise UserError(
            f'annotated in the validation and nowhere in {str(path)!r}: {", ".join(sorted(only_val))}. '
            'A category has to be learned under the same name before it can be measured.'
        )
    return classes, notes


def _masks(data: dict[str, dict], masks: bool | None) -> tuple[bool, list[str]]:
    everything = [annotation for content in data.values() for annotation in content['annotations']]
    lacking = sum(not annotation.get('segmentation') for annotation in everything)
    if masks is False or (masks is None and lacking == len(everything)):
        return False, [] if masks is False else ['no annotation has a mask: boxes alone are learned']
    if lacking:
        raise UserError(
            f'{lacking} of {len(everything)} annotations have no segmentation, and masks are to be learned: give them '
            'one, or learn boxes alone (--boxes).'
        )
    return True, []


def _split(data: dict, classes: tuple[str, ...], fraction: float, seed: int, path: Path) -> dict[str, dict]:
    """Images drawn at random for validation; every class stays in the training data."""
    names = {category['id']: category['name'] for category in data['categories']}
    inside: dict[Any, set[str]] = {image['id']: set() for image in data['images']}
    for annotation in data['annotations']:
        inside[annotation['image_id']].add(names[annotation['category_id']])
    annotated = sum(map(bool, inside.values()))
    if annotated < MIN_TO_SPLIT:
        raise UserError(
            f'{str(path)!r}: {annotated} images with annotations are too few to keep some of them for validation '
            f'(expected {MIN_TO_SPLIT} or more). Annotate more, or name a COCO file of other images for validation.'
        )
    ids = list(inside)
    random.Random(seed).shuffle(ids)
    wanted = max(1, round(fraction * len(ids)))
    chosen: set[Any] = set()
    left = Counter(name for each in inside.values() for name in each)

    def keep(image: Any) -> bool:
        fits = image not in chosen and len(chosen) < wanted and all(left[name] > 1 for name in inside[image])
        if fits:
            chosen.add(image)
            left.subtract(inside[image])
        return fits

    for name in sorted(classes, key=lambda each: left[each]):  # an image of each class, the rarest first
        if not any(name in inside[image] for image in chosen):
            any(keep(image) for image in ids if name in inside[image])
    for image in ids if chosen else ():  # then any; a validation without objects would measure nothing
        keep(image)
    if not chosen:
        raise UserError(
            f'{str(path)!r}: no image can be kept for validation, because each is the only one with some category. '
            'Annotate more, or name a COCO file of other images for validation.'
        )
    parts = {'train': set(ids) - chosen, 'val': chosen}
    return {
        name: {
            **data,
            'images': [image for image in data['images'] if image['id'] in part],
            'annotations': [each for each in data['annotations'] if each['image_id'] in part],
        }
        for name, part in parts.items()
    }


def _written(data: dict, classes: tuple[str, ...]) -> dict:
    """A copy with `classes` as its categories, and with the entries that mmdet and pycocotools need."""
    names = {category['id']: category['name'] for category in data['categories']}
    annotations = []
    for number, annotation in enumerate(data['annotations']):
        annotation = {'iscrowd': 0, **annotation, 'id': number + 1}
        annotation['category_id'] = 1 + classes.index(names[annotation['category_id']])
        box = annotation.get('bbox')
        if 'area' not in annotation and isinstance(box, list) and len(box) == 4:
            annotation['area'] = box[2] * box[3]
        annotations.append(annotation)
    return {
        'images': data['images'],
        'annotations': annotations,
        'categories': [{'id': number + 1, 'name': name} for number, name in enumerate(classes)],
    }


def _edge(image: dict, key: str) -> float:
    value = image.get(key)
    if not isinstance(value, (int, float)) or value < 1:
        raise UserError(f'the image {image.get("file_name")!r} has {value!r} as its {key} in the COCO file.')
    return value
