"""The formats of mmpretrain's data sets: pictures with a class, several, or text; as `drawing` has the others."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np

from .drawing import COUNT, classes_of, coco_json, pictures, scenes, write, xml

__all__ = ['FORMATS', 'TEXT_FORMATS', 'texts']


def folders(root: Path, cls: type) -> dict:
    """A folder a class; with a list where the data set has far more classes than are drawn."""
    classes = classes_of(cls)
    names = pictures(root / 'train' / 'first') + pictures(root / 'train' / 'second')
    if len(classes) == 2:
        return {'data_prefix': 'train'}
    kinds = ['first'] * COUNT + ['second'] * COUNT
    lines = [f'{kind}/{name} {int(kind == "second")}' for kind, name in zip(kinds, names, strict=True)]
    write(root / 'meta' / 'train.txt', lines)
    return {'data_prefix': 'train', 'ann_file': 'meta/train.txt'}


def list_of_labels(root: Path, cls: type) -> dict:
    """mmengine's own format; one label, several, or one for each of several tasks."""
    several = {
        'MultiLabelDataset': lambda k: [k, 1 - k][: 1 + k],
        'MultiTaskDataset': lambda k: {'one': k, 'two': 1 - k},
    }
    label = several.get(cls.__name__, lambda k: k)
    names = pictures(root / 'images')
    folder = 'images/' if cls.__name__ == 'MultiTaskDataset' else ''
    entries = [{'img_path': folder + name, 'gt_label': label(i % 2)} for i, name in enumerate(names)]
    metainfo = {'classes': ['first', 'second'], 'tasks': ['one', 'two']}
    write(root / 'annotations.json', {'metainfo': metainfo, 'data_list': entries})
    if cls.__name__ == 'MultiTaskDataset':
        return {'ann_file': 'annotations.json'}
    return {'ann_file': 'annotations.json', 'data_prefix': 'images'}


def caltech101(root: Path, cls: type) -> dict:
    names = pictures(root / '101_ObjectCategories' / 'ant')
    write(root / 'meta' / 'train.txt', [f'ant/{name} {i % 2}' for i, name in enumerate(names)])
    return {}


def cifar(root: Path, cls: type) -> dict:
    """The files are known by their MD5 sums, which no drawn file has: the survey sets the class to ask for none."""
    cls.train_list = [[name, None] for name, _ in cls.train_list[:1]]
    cls.test_list = [[name, None] for name, _ in cls.test_list]
    cls.meta = {**cls.meta, 'md5': None}
    data = np.stack([cv2.resize(scene.image, (32, 32)).transpose(2, 0, 1).ravel() for scene in scenes()])
    labels = 'labels' if cls.__name__ == 'CIFAR10' else 'fine_labels'
    for name, _ in (*cls.train_list, *cls.test_list):
        content = {'data': data, labels: [i % 2 for i in range(COUNT)]}
        write(root / cls.base_folder / name, pickle.dumps(content))
    write(root / cls.base_folder / cls.meta['filename'], pickle.dumps({cls.meta['key']: classes_of(cls)}))
    return {'download': False}


def cub(root: Path, cls: type) -> dict:
    lines = enumerate(pictures(root / 'images'), start=1)
    write(root / 'images.txt', [f'{i} {name}' for i, name in lines])
    write(root / 'image_class_labels.txt', [f'{i} {1 + i % 2}' for i in range(1, COUNT + 1)])
    write(root / 'train_test_split.txt', [f'{i} {i % 2}' for i in range(1, COUNT + 1)])
    return {}


def dtd(root: Path, cls: type) -> dict:
    names = pictures(root / 'images')
    kinds = {'name': names, 'class': [1 + i % 2 for i in range(COUNT)], 'set': [1] * COUNT}
    write(root / 'imdb' / 'imdb.mat', {'images': kinds})
    return {}


def aircraft(root: Path, cls: type) -> dict:
    names = pictures(root / 'data' / 'images')
    lines = [f'{name[:-4]} {classes_of(cls)[i % 2]}' for i, name in enumerate(names)]
    write(root / 'data' / 'images_variant_trainval.txt', lines)
    return {}


def flowers102(root: Path, cls: type) -> dict:
    pictures(root / 'jpg', 'image_{:05d}.jpg')
    write(root / 'imagelabels.mat', {'labels': [1 + i % 2 for i in range(COUNT)]})
    write(root / 'setid.mat', {'trnid': [1, 2], 'valid': [2, 3], 'tstid': [2, 3]})
    return {}


def food101(root: Path, cls: type) -> dict:
    kind = classes_of(cls)[1]
    write(root / 'meta' / 'train.txt', [f'{kind}/{name[:-4]}' for name in pictures(root / 'images' / kind)])
    return {}


def in_shop(root: Path, cls: type) -> dict:
    names = pictures(root / 'Img')
    lines = [f'{name} id_{i // 3} {("train", "query", "gallery")[i % 3]}' for i, name in enumerate(names)]
    write(root / 'Eval' / 'list_eval_partition.txt', [COUNT, 'image_name item_id evaluation_status', *lines])
    return {}


def mnist(root: Path, cls: type) -> dict:
    images = np.stack([cv2.resize(scene.image[..., 0], (28, 28)) for scene in scenes()])
    for part in ('train', 't10k'):
        header = b''.join(number.to_bytes(4, 'big') for number in (0x803, COUNT, 28, 28))
        write(root / f'{part}-images-idx3-ubyte', header + images.tobytes())
        header = b''.join(number.to_bytes(4, 'big') for number in (0x801, COUNT))
        write(root / f'{part}-labels-idx1-ubyte', header + bytes(i % 2 for i in range(COUNT)))
    return {'download': False}


def nlvr2(root: Path, cls: type) -> dict:
    for side in (0, 1):
        pictures(root / 'images', f'pair-{{}}-img{side}.png')
    label = ('True', 'False')
    lines = [{'identifier': f'pair-{i}-x', 'sentence': 'two', 'label': label[i % 2]} for i in range(COUNT)]
    write(root / 'train.json', '\n'.join(map(json.dumps, lines)))
    return {'ann_file': 'train.json', 'data_prefix': 'images'}


def pets(root: Path, cls: type) -> dict:
    names = pictures(root / 'images')
    write(root / 'annotations' / 'trainval.txt', [f'{name[:-4]} {1 + i % 2} 1 1' for i, name in enumerate(names)])
    return {}


def cars(root: Path, cls: type) -> dict:
    labels = [1 + i % 2 for i in range(COUNT)]
    content = {'relative_im_path': pictures(root), 'class': labels, 'test': [0] * COUNT}
    write(root / 'cars_annos.mat', {'annotations': content})
    return {}


def sun397(root: Path, cls: type) -> dict:
    kind = classes_of(cls)[0]
    names = pictures(root / 'SUN397' / kind[0] / kind)
    write(root / 'Partitions' / 'Training_01.txt', [f'/{kind[0]}/{kind}/{name}' for name in names])
    return {}


def voc(root: Path, cls: type) -> dict:
    pictures(root / 'JPEGImages')
    write(root / 'ImageSets' / 'Main' / 'trainval.txt', xml(root, classes_of(cls)))
    return {}


# --------------------------------------------------------------------------------------------------------------------
# Text


def texts(root: Path, cls: type) -> dict:
    """mmengine's own format with everything that metrics of text read."""
    entry = {
        'gt_answer': 'yes', 'gt_answer_weight': [1.0], 'gt_caption': ['a picture'], 'choices': ['yes', 'no'],
        'hint': '', 'grade': 'grade1', 'subject': 'natural science',
        'gt_bboxes': [[2.0, 3.0, 30.0, 40.0]], 'has_image': True,
    }  # fmt: skip
    entries = [
        {**entry, 'img_path': name, 'question_id': i, 'image_id': i} for i, name in enumerate(pictures(root / 'images'))
    ]
    for each in entries[::2]:
        each['gt_answer'] = 'no'
    write(root / 'annotations.json', {'metainfo': {}, 'data_list': entries})
    return {'ann_file': 'annotations.json', 'data_prefix': 'images'}


def coco_captions(root: Path, cls: type) -> dict:
    name = 'train/{:03d}.jpg' if cls.__name__ == 'COCORetrieval' else '{:03d}.jpg'
    content = coco_json(root, ('first', 'second'), name)
    write(root / 'annotations.json', content)
    few = {'num_support_examples': 2, 'num_query_examples': 2} if 'Flamingo' in cls.__name__ else {}
    return {'ann_file': 'annotations.json', 'data_prefix': {'img_path': 'images'}, **few}


def image_captions(root: Path, cls: type) -> dict:
    names = pictures(root / 'images', 'COCO_{:012d}.jpg')
    write(root / 'captions.json', [{'image': name, 'caption': f'a {name}'} for name in names])
    return {'ann_file': 'captions.json', 'data_prefix': {'img_path': 'images'}}


def coco_vqa(root: Path, cls: type) -> dict:
    pictures(root / 'images', 'COCO_{:012d}.jpg')
    ids = [{'question_id': i, 'image_id': i} for i in range(COUNT)]
    answers = [{'answer': 'yes'}, {'answer': 'no'}, {'answer': 'yes'}]
    write(root / 'questions.json', {'questions': [{**each, 'question': 'Is it?'} for each in ids]})
    write(root / 'answers.json', {'annotations': [{**each, 'answers': answers} for each in ids]})
    few = {'num_support_examples': 2, 'num_query_examples': 2} if 'Flamingo' in cls.__name__ else {}
    return {'question_file': 'questions.json', 'ann_file': 'answers.json', 'data_prefix': 'images', **few}


def flickr30k(root: Path, cls: type) -> dict:
    content = [
        {'split': 'train', 'imgid': i, 'filename': name, 'sentences': [{'raw': f'a {name}', 'sentid': i}]}
        for i, name in enumerate(pictures(root / 'images'))
    ]
    write(root / 'annotations.json', {'images': content})
    return {'ann_file': 'annotations.json', 'data_prefix': 'images', 'split': 'train'}


def questions(root: Path, cls: type) -> dict:
    """A list of questions with answers, under the key that each data set reads."""
    within = str(root / 'images') + '/' if cls.__name__ == 'VGVQA' else ''
    answer = {'TextVQA': ['yes', 'no'], 'VizWiz': [{'answer': 'yes', 'answer_confidence': 'yes'}], 'VSR': True}
    told = answer.get(cls.__name__, 'yes')
    entries = [
        {'image': within + name, 'img_path': name, 'dataset': 'vg', 'image_local_name': name,
         'image_id': name[:-4], 'question': f'Is it {i}?', 'question_id': i,
         'answer': told, 'answers': told if isinstance(told, list) else [told], 'answerable': 1}
        for i, name in enumerate(pictures(root / 'images'))
    ]  # fmt: skip
    inside = cls.__name__ in ('TextVQA', 'InfographicVQA')
    write(root / 'annotations.json', {'data': entries} if inside else entries)
    return {'ann_file': 'annotations.json', 'data_prefix': 'images'}


def visual_genome(root: Path, cls: type) -> dict:
    pictures(root / 'image', '{}.jpg')
    keys = ('question', 'quesiton')  # the second is how the data set spells it
    entries = [
        {'image_id': i, 'question_id': i, 'answer': 'yes', **dict.fromkeys(keys, 'Is it?')} for i in range(COUNT)
    ]
    write(root / 'question_answers.json', [{'qas': [each]} for each in entries])
    return {}


def icon_qa(root: Path, cls: type) -> dict:
    pictures(root / 'train', '{}/image.png')
    for i in range(COUNT):
        write(root / 'train' / str(i) / 'data.json', {'choices': ['yes', 'no'], 'answer': i % 2, 'question': 'Is it?'})
    return {'data_prefix': 'train'}


def mini_gpt4(root: Path, cls: type) -> dict:
    names = pictures(root / 'image')
    write(root / 'chats.json', [{'id': name[:-4], 'conversation': '###Ask: <Img></Img> What?'} for name in names])
    return {'ann_file': 'chats.json'}


def ocr_vqa(root: Path, cls: type) -> dict:
    entry = {'split': 1, 'questions': ['Is it?'], 'answers': ['yes'], 'title': 'a', 'authorName': 'b', 'genre': 'c'}
    names = pictures(root / 'images')
    write(root / 'dataset.json', {name[:-4]: {**entry, 'imageURL': f'http://{name}'} for name in names})
    return {'ann_file': 'dataset.json', 'data_prefix': 'images', 'split': 'train'}


def science_qa(root: Path, cls: type) -> dict:
    pictures(root / 'images', '{}/image.png')
    entry = {
        'question': 'Is it?', 'choices': ['yes', 'no'], 'answer': 0, 'hint': '', 'subject': 'natural science',
        'task': '', 'topic': '', 'category': '', 'skill': '', 'lecture': '',
        'solution': '', 'split': 'train', 'grade': 'grade1',
        'image': 'image.png',
    }  # fmt: skip
    ids = [str(i) for i in range(COUNT)]
    write(root / 'problems.json', dict.fromkeys(ids, entry))
    write(root / 'splits.json', {'train': ids})
    files = {'ann_file': 'problems.json', 'split_file': 'splits.json'}
    return {**files, 'data_prefix': {'img_path': 'images'}, 'split': 'train'}


FORMATS = {
    'Caltech101': caltech101, 'CIFAR10': cifar, 'CIFAR100': cifar, 'CUB': cub, 'DTD': dtd, 'FGVCAircraft': aircraft,
    'Flowers102': flowers102, 'Food101': food101, 'InShop': in_shop, 'MNIST': mnist, 'FashionMNIST': mnist,
    'NLVR2': nlvr2, 'OxfordIIITPet': pets, 'StanfordCars': cars, 'SUN397': sun397, 'VOC': voc,
    **dict.fromkeys(('CustomDataset', 'ImageNet', 'ImageNet21k', 'Places205'), folders),
    **dict.fromkeys(('BaseDataset', 'MultiLabelDataset', 'MultiTaskDataset'), list_of_labels),
}  # fmt: skip
TEXT_FORMATS = {
    **dict.fromkeys(('COCORetrieval', 'FlamingoEvalCOCOCaption', 'NoCaps'), coco_captions),
    **dict.fromkeys(('COCOVQA', 'FlamingoEvalCOCOVQA'), coco_vqa),
    **dict.fromkeys(('Flickr30kCaption', 'Flickr30kRetrieval'), flickr30k),
    **dict.fromkeys(('GQA', 'InfographicVQA', 'TextVQA', 'VGVQA', 'VizWiz', 'VSR'), questions),
    'COCOCaption': image_captions, 'IconQA': icon_qa, 'MiniGPT4Dataset': mini_gpt4, 'OCRVQA': ocr_vqa,
    'ScienceQA': science_qa, 'VisualGenomeQA': visual_genome,
}  # fmt: skip
