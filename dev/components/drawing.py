"""Four small pictures, and the annotation formats of the libraries' data sets around them.

A format is a function of an empty folder and the class of the data set. It writes the files and returns what the data
set's constructor is to be given beside its pipeline.
"""

import csv
import functools
import inspect
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

__all__ = ['COUNT', 'classes_of', 'coco_json']

COUNT = 4


class Scene(NamedTuple):
    """A picture with two rectangles, of classes 0 and 1."""

    image: np.ndarray  # [H, W, 3]
    map: np.ndarray  # [H, W], of 0, 1 and 2
    boxes: list[list[int]]  # x1, y1, x2, y2

    @property
    def height(self) -> int:
        return len(self.image)

    @property
    def width(self) -> int:
        return self.image.shape[1]


@functools.cache
def scenes() -> list[Scene]:
    random, made = np.random.RandomState(0), []
    for i in range(COUNT):
        height, width = (48, 64) if i % 2 else (64, 48)
        image = random.randint(0, 60, (height, width, 3), np.uint8)
        labels, boxes = np.zeros((height, width), np.uint8), []
        for number, top in enumerate((2, height // 2)):
            x, y = random.randint(2, 12), top + random.randint(0, 4)
            box = [x, y, x + random.randint(12, 30), y + random.randint(10, 16)]
            image[box[1] : box[3], box[0] : box[2]] += np.uint8(80 + 60 * number)
            labels[box[1] : box[3], box[0] : box[2]] = number + 1
            boxes.append(box)
        made.append(Scene(image, labels, boxes))
    return made


def classes_of(cls: type) -> list[str]:
    return list(getattr(cls, 'METAINFO', {}).get('classes') or ('first', 'second'))


def write(path: Path, content: Any) -> Path:
    """A file, by its ending; with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        cv2.imwrite(str(path), content)
    elif path.suffix in ('.pkl', '.p'):
        path.write_bytes(pickle.dumps(content))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == '.mat':
        import mat4py

        mat4py.savemat(str(path), content)
    elif path.suffix == '.csv':
        with path.open('w', newline='') as file:
            csv.writer(file).writerows(content)
    else:
        if not isinstance(content, str) and path.suffix == '.json':
            content = json.dumps(content)
        path.write_text(content if isinstance(content, str) else '\n'.join(map(str, content)) + '\n')
    return path


def pictures(folder: Path, name: str = '{:03d}.jpg', size: int | None = None) -> list[str]:
    """Writes the pictures; their names."""
    names = [name.format(i) for i in range(COUNT)]
    for each, scene in zip(names, scenes(), strict=True):
        write(folder / each, scene.image if size is None else cv2.resize(scene.image, (size, size)))
    return names


# --------------------------------------------------------------------------------------------------------------------
# Detection


def coco_json(
    root: Path, classes: Sequence[str], name: str = '{:03d}.jpg', caption: str = 'a first and a second'
) -> dict:
    """COCO's format with the keys that its descendants add (videos, captions, referring, LVIS)."""
    names = pictures(root / 'images', name)
    images, annotations = [], []
    for i, (file, scene) in enumerate(zip(names, scenes(), strict=True)):
        images.append({
            'id': i, 'file_name': file, 'width': scene.width, 'height': scene.height, 'video_id': 1 + i // 2,
            'frame_id': i % 2, 'caption': caption, 'dataset_name': 'refcoco', 'coco_url': f'http://images.cocodataset.org/{file}',
            'tokens_positive_eval': [[[2, 7]], [[14, 20]]], 'neg_category_ids': [], 'not_exhaustive_category_ids': [],
        })  # fmt: skip
        for k, (x1, y1, x2, y2) in enumerate(scene.boxes):
            annotations.append({
                'id': 2 * i + k + 1, 'image_id': i, 'category_id': k + 1, 'bbox': [x1, y1, x2 - x1, y2 - y1],
                'area': (x2 - x1) * (y2 - y1), 'iscrowd': 0, 'instance_id': k + 1, 'visibility': 1.0, 'mot_conf': 1.0,
                'segmentation': [[x1, y1, x2, y1, x2, y2, x1, y2]], 'phrase_ids': k, 'caption': caption,
                'video_id': 1 + i // 2,
            })  # fmt: skip
    kinds = [{'id': k + 1, 'name': n, 'frequency': 'f', 'image_count': COUNT} for k, n in enumerate(classes)]
    videos = [{'id': i, 'name': f'video{i}', 'width': 64, 'height': 64, 'length': 2} for i in (1, 2)]
    return {'images': images, 'annotations': annotations, 'categories': kinds, 'videos': videos}


def coco(root: Path, cls: type) -> dict:
    classes = classes_of(cls)
    write(root / 'annotations.json', coco_json(root, classes))
    if cls.__name__ != 'V3DetDataset':
        return {'ann_file': 'annotations.json', 'data_prefix': {'img': 'images/'}}
    write(root / 'names.txt', classes)
    return {'ann_file': 'annotations.json', 'data_prefix': {'img': 'images/'}, 'label_file': 'names.txt'}


def flickr30k(root: Path, cls: type) -> dict:
    """Boxes are numbered from 0, as phrases are."""
    content = coco_json(root, classes_of(cls))
    for entry in (*content['annotations'], *content['categories']):
        key = 'category_id' if 'category_id' in entry else 'id'
        entry[key] -= 1
    if cls.__name__ == 'MDETRStyleRefCocoDataset':
        content['annotations'] = content['annotations'][::2]  # a sentence is about one
    write(root / 'annotations.json', content)
    return {'ann_file': 'annotations.json', 'data_prefix': {'img': 'images/'}}


def video(root: Path, cls: type) -> dict:
    version = {'dataset_version': '2019'} if cls.__name__ == 'YouTubeVISDataset' else {}
    if version:
        cls.set_dataset_classes('2019')
    name = 'video{0}/img1/{1:03d}.jpg'
    content = coco_json(root, classes_of(cls), '{:03d}.jpg')
    for i, image in enumerate(content['images']):
        image['file_name'] = name.format(1 + i // 2, i)
        write(root / 'images' / image['file_name'], scenes()[i].image)
    write(root / 'annotations.json', content)
    return {'ann_file': 'annotations.json', 'data_prefix': {'img_path': 'images/'}, **version}


def panoptic(root: Path, cls: type) -> dict:
    content = coco_json(root, classes_of(cls))
    segments: dict[int, list] = {}
    for entry in content['annotations']:
        segments.setdefault(entry['image_id'], []).append(entry)
    for scene, image in zip(scenes(), content['images'], strict=True):
        ids = np.array([0, *(entry['id'] for entry in segments[image['id']])])[scene.map]
        png = image['file_name'].replace('jpg', 'png')
        write(root / 'panoptic' / png, np.stack([ids // 256**2, ids // 256 % 256, ids % 256], -1).astype(np.uint8))
        image['file_name_png'] = png
    per_image = [
        {'image_id': i, 'file_name': f'{i:03d}.png', 'segments_info': entries} for i, entries in segments.items()
    ]
    kinds = [{**kind, 'isthing': 1, 'color': [9, 9, 9]} for kind in content['categories']]
    write(root / 'annotations.json', {**content, 'annotations': per_image, 'categories': kinds})
    return {'ann_file': 'annotations.json', 'data_prefix': {'img': 'images/', 'seg': 'panoptic/'}}


def instances_json(root: Path, cls: type) -> dict:
    """mmengine's own format."""
    entries = [
        {'img_path': name, 'img_id': i, 'height': scene.height, 'width': scene.width,
         'instances': [{'bbox': b, 'bbox_label': k, 'ignore_flag': 0} for k, b in enumerate(scene.boxes)]}
        for i, (name, scene) in enumerate(zip(pictures(root / 'images'), scenes(), strict=True))
    ]  # fmt: skip
    write(root / 'annotations.json', {'metainfo': {'classes': ['first', 'second']}, 'data_list': entries})
    return {'ann_file': 'annotations.json', 'data_prefix': {'img_path': 'images/'}}


def xml(root: Path, classes: Sequence[str], folder: str = '') -> list[str]:
    for i, scene in enumerate(scenes()):
        objects = ''.join(
            f'<object><name>{name}</name><difficult>{int(i == 1 and k == 1)}</difficult><bndbox><xmin>{x1}</xmin>'
            f'<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>'
            for k, (name, (x1, y1, x2, y2)) in enumerate(zip(2 * list(classes), scene.boxes, strict=False))
        )
        size = f'<size><width>{scene.width}</width><height>{scene.height}</height></size>'
        text = f'<annotation><folder>{folder}</folder>{size}{objects}</annotation>'
        write(root / 'Annotations' / f'{i:03d}.xml', text)
    return [f'{i:03d}' for i in range(COUNT)]


def voc(root: Path, cls: type) -> dict:
    pictures(root / 'VOC2007' / 'JPEGImages')
    write(root / 'VOC2007' / 'train.txt', xml(root / 'VOC2007', classes_of(cls)))
    return {'ann_file': 'VOC2007/train.txt', 'data_prefix': {'sub_data_root': 'VOC2007/'}}


def wider_face(root: Path, cls: type) -> dict:
    pictures(root / 'faces')
    write(root / 'train.txt', xml(root, classes_of(cls), 'faces'))
    return {'ann_file': 'train.txt', 'data_prefix': {'img': ''}}


def crowdhuman(root: Path, cls: type) -> dict:
    names, lines = pictures(root / 'Images'), []
    for name, scene in zip(names, scenes(), strict=True):
        boxes = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in scene.boxes]
        people = [{'tag': 'person', 'fbox': b, 'hbox': b, 'vbox': b, 'extra': {}, 'head_attr': {}} for b in boxes]
        lines.append(json.dumps({'ID': name[:-4], 'gtboxes': people}))
    write(root / 'train.odgt', lines)
    return {'ann_file': 'train.odgt', 'data_prefix': {'img': 'Images/'}}


def open_images(root: Path, cls: type) -> dict:
    challenge = cls.__name__ == 'OpenImagesChallengeDataset'
    names = pictures(root / 'images')
    rows, text = [[]], []
    for name, scene in zip(names, scenes(), strict=True):
        text += [name, '0 0', len(scene.boxes)]
        for k, (x1, y1, x2, y2) in enumerate(scene.boxes):
            box = [x1 / scene.width, x2 / scene.width, y1 / scene.height, y2 / scene.height]
            rows.append([name[:-4], 'x', f'/m/{k}', 1, *box, 0, 0, 0, 0, 0])
            text.append(f'{k + 1} {box[0]} {box[2]} {box[1]} {box[3]} 0')
    write(root / 'boxes.csv', rows)
    write(root / 'boxes.txt', text)
    write(root / 'names.csv', [[f'/m/{k}', name, k + 1] for k, name in enumerate(('first', 'second'))])
    write(root / 'tree.json', {'LabelName': '/m/entity', 'Subcategory': [{'LabelName': f'/m/{k}'} for k in (0, 1)]})
    np.save(root / 'tree.npy', np.eye(3))
    sizes = zip(names, scenes(), strict=True)
    write(root / 'sizes.pkl', [{'filename': name, 'ori_shape': scene.image.shape} for name, scene in sizes])
    return {
        'ann_file': 'boxes.txt' if challenge else 'boxes.csv', 'label_file': 'names.csv', 'meta_file': 'sizes.pkl',
        'hierarchy_file': 'tree.npy' if challenge else 'tree.json', 'data_prefix': {'img': 'images/'},
    }  # fmt: skip


def odvg(root: Path, cls: type) -> dict:
    lines = []
    for name, scene in zip(pictures(root / 'images'), scenes(), strict=True):
        boxes = [{'bbox': box, 'label': k, 'category': 'x'} for k, box in enumerate(scene.boxes)]
        entry = {'filename': name, 'height': scene.height, 'width': scene.width, 'detection': {'instances': boxes}}
        lines.append(json.dumps(entry))
    write(root / 'train.jsonl', lines)
    write(root / 'names.json', {'0': 'first', '1': 'second'})
    prefix = {'img': 'images/'}
    return {'ann_file': 'train.jsonl', 'label_map_file': 'names.json', 'data_prefix': prefix, 'return_classes': True}


def refcoco(root: Path, cls: type) -> dict:
    content = coco_json(root, ('first', 'second'))
    write(root / 'annotations.json', content)
    sentence = [{'raw': 'The first', 'sent': 'the first', 'sent_id': 0}]
    keys = [(i, entry['id'], entry['image_id']) for i, entry in enumerate(content['annotations'])]
    refs = [
        {'ref_id': i, 'ann_id': ann, 'image_id': image, 'split': 'train', 'sentences': sentence}
        for i, ann, image in keys
    ]
    write(root / 'refs.p', refs)
    prefix = 'images/' if cls.__module__.startswith('mmpretrain') else {'img_path': 'images/'}
    return {'ann_file': 'annotations.json', 'split_file': 'refs.p', 'data_prefix': prefix, 'split': 'train'}


def captions(root: Path, cls: type) -> dict:
    names = pictures(root / 'images', 'COCO_{:03d}.jpg')
    write(root / 'captions.json', [{'image': name, 'caption': [f'a {name}', 'a picture']} for name in names])
    return {'ann_file': 'captions.json', 'data_prefix': {'img_path': 'images/'}}


def people(root: Path, cls: type) -> dict:
    write(root / 'train.txt', [f'{name} {i // 2}' for i, name in enumerate(pictures(root / 'images'))])
    return {'ann_file': 'train.txt', 'data_prefix': {'img_path': 'images/'}}


# --------------------------------------------------------------------------------------------------------------------
# Segmentation


def maps(root: Path, cls: type) -> dict:
    """A folder of pictures and one of maps, by the endings that the data set has for its own."""
    given = {n: p.default for n, p in inspect.signature(cls).parameters.items() if n.endswith('suffix')}
    image, labels = (
        given.get('img_suffix', '.png' if cls.__name__ == 'REFUGEDataset' else '.jpg'),
        given.get('seg_map_suffix', '.png'),
    )
    pictures(root / 'images', '{:03d}' + image)
    for i, scene in enumerate(scenes()):
        write(root / 'maps' / f'{i:03d}{labels}', scene.map % 2)
    write(root / 'train.txt', [f'{i:03d}' for i in range(COUNT)])
    split = {'ann_file': 'train.txt'} if 'Pascal' in cls.__name__ else {}
    return {'data_prefix': {'img_path': 'images/', 'seg_map_path': 'maps/'}, **split}


def changes(root: Path, cls: type) -> dict:
    suffix = inspect.signature(cls).parameters['img_suffix'].default
    for folder in ('before', 'after'):
        pictures(root / folder, '{:03d}' + suffix)
    for i, scene in enumerate(scenes()):
        write(root / 'maps' / f'{i:03d}.png', scene.map % 2)
    return {'data_prefix': {'img_path': 'before/', 'img_path2': 'after/', 'seg_map_path': 'maps/'}}


def depths(root: Path, cls: type) -> dict:
    pictures(root / 'images', 'bookstore_{:04d}.jpg')
    for i, scene in enumerate(scenes()):
        write(root / 'annotations' / f'bookstore_{i:04d}.png', 1 + scene.map)
    return {'data_prefix': {'img_path': 'images', 'depth_map_path': 'annotations'}}


def decathlon(root: Path, cls: type) -> dict:
    maps(root, cls)
    pairs = [{'image': f'./images/{i:03d}.jpg', 'label': f'./maps/{i:03d}.png'} for i in range(COUNT)]
    labels = {'0': 'background', '1': 'first'}
    write(root / 'dataset.json', {'training': pairs, 'test': [], 'labels': labels})
    return {'ann_file': 'dataset.json'}


# --------------------------------------------------------------------------------------------------------------------
# What some metrics read beside the annotations


def hard_objects(folder: Path) -> None:
    from pycocotools import mask

    name = coco_json(folder, ('person', 'bicycle'))['categories'][0]['name']
    found = []
    for i, scene in enumerate(scenes()):
        x1, y1, x2, y2 = scene.boxes[0]
        code = mask.encode(np.asfortranarray((scene.map == 1).astype(np.uint8)))
        found.append([f'{i:03d}.jpg', name, i, [x1, y1, x2 - x1, y2 - y1], code])
    write(folder / 'some.pkl', found)


def sentences(folder: Path) -> None:
    """A category for each of the metric's four lengths of a sentence; each picture has two of them."""
    kinds = [' '.join(['word'] * length) for length in (1, 4, 7, 10)]
    truth = coco_json(folder, kinds)
    for number, entry in enumerate(truth['annotations']):
        entry['category_id'] = number % 4 + 1
    write(folder / 'coco.json', truth)
    content = json.loads((folder / 'annotations.json').read_text())
    for i, entry in enumerate(content['data_list']):
        entry['sent_ids'] = np.array([2 * i % 4 + 1, (2 * i + 1) % 4 + 1])
    write(folder / 'annotations.pkl', content)


def no_targets(folder: Path) -> None:
    """Pictures of which the sentence names nothing: category -1."""
    content = json.loads((folder / 'annotations.json').read_text())
    for entry in content['annotations']:
        entry['category_id'] = -1 if entry['image_id'] >= 2 else entry['category_id']
    write(folder / 'some.json', content)


FOR_METRICS = {
    'CocoOccludedSeparatedMetric': hard_objects,
    'DODCocoMetric': sentences,
    'gRefCOCOMetric': no_targets,
}
