"""What data lacks as a whole is told before the first step: refused where results would mean nothing, else warned."""

import json
from collections import Counter

import numpy as np
import pytest
from mmengine.evaluator import Evaluator

from mmext_backbones.datasets.bad_data import runner
from mmext_backbones.datasets.bad_data.coverage import Labels, count_labels, lacking, weight_faults
from mmext_backbones.datasets.bad_data.dataset import guarded_dataset
from mmext_backbones.datasets.bad_data.kinds import BadDataError
from mmext_backbones.datasets.bad_data.report import check_splits
from mmext_backbones.datasets.bad_data.truth import check_truth, countable_annotations

from .toy import CLASSES, Loops, coco, config, maps, write_coco, write_maps

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')


@pytest.fixture
def warned(monkeypatch):
    """What a run warns of."""
    told = []
    monkeypatch.setattr(runner, 'warn', told.append)
    return told


def kinds(cfg, split='train', **options):
    return set(check_splits(cfg, (split,), masks=False, **options)[split]['faults'])


def each(key, value):
    return lambda content: [entry.update({key: value}) for entry in content['annotations']]


@pytest.mark.parametrize(
    ('change', 'keys', 'told'),
    [
        (each('iscrowd', 1), {}, 'all 6 boxes are crowds'),
        (each('ignore', 1), {}, 'no box is left'),
        (each('area', 0), {}, 'no box is left'),
        (lambda content: content['annotations'].clear(), {}, 'no box is left'),
    ],
    ids=['iscrowd', 'ignore', 'area', 'none'],
)
def test_nothing_to_learn(change, keys, told, tmp_path, warned, capfd):
    write_coco(tmp_path, 'train', change=change)
    cfg = config('mmdet', coco(tmp_path, 'train', **keys))
    assert len(list(Loops(cfg, tmp_path).train().dataloader)) == 3  # the run goes on
    (text,) = warned
    assert told in text
    assert 'Look at iscrowd, ignore' in text
    assert 'nothing to learn' in kinds(cfg)


def test_a_class_without_objects(tmp_path, warned, capfd):
    write_coco(tmp_path, 'train', change=lambda content: each('category_id', 1)(content))
    write_coco(tmp_path, 'more')
    cfg = config('mmdet', coco(tmp_path, 'train'))
    Loops(cfg, tmp_path).train()
    assert 'no object of the train data is of class bar' in warned[0]
    assert 'class without objects' in kinds(cfg)
    both = {'type': 'ConcatDataset', 'datasets': [coco(tmp_path, name) for name in ('train', 'more')]}
    assert 'class without objects' not in kinds(config('mmdet', both))  # the other set has it


def test_a_category_that_the_file_lacks(tmp_path, warned, capfd):
    """The last class: the others have their numbers all the same, and mmengine's runner trains."""

    def without_bar(content):
        each('category_id', 1)(content)
        content['categories'] = [entry for entry in content['categories'] if entry['name'] == 'disc']

    write_coco(tmp_path, 'train', change=without_bar)
    cfg = config('mmdet', coco(tmp_path, 'train'))
    assert len(list(Loops(cfg, tmp_path).train().dataloader)) == 3
    assert '1 of the 2 classes of the config are no categories of this file: bar' in warned[0]
    assert kinds(cfg) >= {'missing categories', 'class without objects'}


def test_good_data_is_told_nothing_of(tmp_path, warned, capfd):
    for name in ('train', 'val'):
        write_coco(tmp_path, name)
    metric = {'type': 'CocoMetric', 'ann_file': str(tmp_path / 'val.json')}
    cfg = config('mmdet', coco(tmp_path, 'train'), coco(tmp_path, 'val', test_mode=True), val_evaluator=metric)
    Loops(cfg, tmp_path).train()
    Loops(cfg, tmp_path).val()
    assert warned == []
    assert not kinds(cfg) | kinds(cfg, 'val')


def test_labels_are_counted_in_some_entries_of_many(tmp_path, capfd):
    write_coco(tmp_path, 'train', 5)
    config('mmdet')
    leaf = guarded_dataset(coco(tmp_path, 'train'), 'train')
    assert count_labels(leaf) == Labels(Counter({0: 5, 1: 5}), 0, 5, True)
    assert count_labels(leaf, 2) == Labels(Counter({0: 2, 1: 2}), 0, 2, False)
    part = Labels(Counter({0: 2}), 0, 2, False)  # the class may be in the rest
    assert lacking([leaf], [part], 'train') == []
    assert lacking([leaf], [None], 'train') == []
    assert lacking([leaf], [Labels(Counter(), 0, 5, True)], 'test') == []


# --------------------------------------------------------------------------------------------------------------------
# Maps


@pytest.mark.parametrize('fast', [False, True])
def test_a_class_that_no_pixel_has(fast, tmp_path, warned, capfd):
    write_maps(tmp_path, [0, 255])
    cfg = config('mmseg', maps(tmp_path))
    state = np.random.get_state()[1].copy()
    Loops(cfg, tmp_path).train()
    assert (np.random.get_state()[1] == state).all()
    assert 'is of class road. 255, which is ignored, is in 3 of 3 maps (50 % of their pixels)' in warned[0]
    assert {'class without pixels', 'ignored pixels'} <= kinds(cfg, fast=fast)


@pytest.mark.parametrize(('labels', 'zero', 'found'), [
    ([0, 1], False, set()),
    ([0, 1], True, {'class without pixels', 'ignored pixels'}),
    ([1, 2], True, set()),
    ([0, 1, 2], True, {'ignored pixels'}),
    ([0, 1, 255], False, {'ignored pixels'}),
])  # fmt: skip
def test_labels_of_maps(labels, zero, found, tmp_path, capfd):
    write_maps(tmp_path, labels)
    assert kinds(config('mmseg', maps(tmp_path, reduce_zero_label=zero))) == found


def test_weights_of_classes_and_ignored_pixels(tmp_path, warned, capfd):
    write_maps(tmp_path, [0, 1, 255])
    cfg = config('mmseg', maps(tmp_path))
    cfg.model = {'type': 'x', 'decode_head': {'num_classes': 2}}
    loss = {'type': 'CrossEntropyLoss', 'class_weight': [1.0, 2.0]}
    cfg.model.decode_head.loss_decode = [{'type': 'DiceLoss'}, loss]
    Loops(cfg, tmp_path).train()
    assert "'model.decode_head.loss_decode.1': has a class_weight" in warned[0]
    assert 'loss_decode.reduction=none' in warned[0]
    some = [np.bincount([0, 255], minlength=256)]
    for change in ({'reduction': 'none'}, {'use_sigmoid': True}, {'class_weight': None}):
        cfg.model.decode_head.loss_decode = {**loss, **change}
        assert weight_faults(cfg, some) == []
    cfg.model.decode_head.loss_decode = loss
    assert weight_faults(cfg, [np.bincount([0], minlength=256)]) == []
    cfg.model.data_preprocessor = {'size': (8, 8)}  # pads with 255
    assert len(weight_faults(cfg, [np.bincount([0], minlength=256)])) == 1


def test_the_error_of_class_weights_says_what_to_type(capfd):
    """And what it says works: the mean without weights of 255."""
    import torch
    from mmseg.models.losses import CrossEntropyLoss

    from mmext_backbones.utils.explain import explain

    scores, labels = torch.randn(1, 2, 4, 4), torch.full((1, 4, 4), 255)
    labels[0, 0] = 1
    with pytest.raises(IndexError) as caught:
        CrossEntropyLoss(class_weight=[1.0, 2.0])(scores, labels, ignore_index=255)
    assert 'model.decode_head.loss_decode.reduction=none' in explain(caught.value)
    loss = CrossEntropyLoss(class_weight=[1.0, 2.0], reduction='none')(scores, labels, ignore_index=255)
    weighed = 2 * torch.nn.functional.cross_entropy(scores[:, :, :1], labels[:, :1], reduction='none')
    torch.testing.assert_close(loss.sum(), weighed.sum())


# --------------------------------------------------------------------------------------------------------------------
# Iterations


@pytest.mark.parametrize('split', ['train', 'val'])
def test_data_smaller_than_a_batch(split, tmp_path, warned, capfd):
    write_coco(tmp_path, split)
    cfg = config('mmdet', **{split: coco(tmp_path, split)}, val_evaluator={'type': 'CocoMetric'})
    loader = cfg[f'{split}_dataloader']
    loader.update(batch_size=8, drop_last=True)
    run = getattr(Loops(cfg, tmp_path), split)
    with pytest.raises(BadDataError, match=r'has 3 samples, and .*: not one iteration') as caught:
        run()
    assert f'{split}_dataloader.drop_last=False' in str(caught.value)
    loader.sampler.type = 'InfiniteSampler'  # never ends, and so fills every batch
    run()
    loader.update(batch_size=3, sampler={'type': 'DefaultSampler', 'shuffle': False})
    assert len(run().dataloader) == 1


# --------------------------------------------------------------------------------------------------------------------
# The file of the evaluator


def evaluated(root, name, val='val', **keys):
    metric = {'type': 'CocoMetric', 'ann_file': str(root / f'{name}.json'), **keys}
    return config('mmdet', val=coco(root, val, test_mode=True), val_evaluator=metric)


def test_the_evaluator_reads_another_file(tmp_path, warned, capfd):
    write_coco(tmp_path, 'val')
    write_coco(tmp_path, 'old', 5)  # the numbers of images overlap
    write_coco(tmp_path, 'few', 1)
    for name, words in (('old', '3 of 3 images have the number of another file'), ('few', 'lacks 2 of 3 images')):
        cfg = evaluated(tmp_path, name)
        with pytest.raises(BadDataError) as caught:
            Loops(cfg, tmp_path).val()
        assert words in str(caught.value)
        assert 'val.json' in str(caught.value)
        assert f'{name}.json' in str(caught.value)
        assert 'other truth' in kinds(cfg, 'val')
    Loops(evaluated(tmp_path, 'old', format_only=True, outfile_prefix=str(tmp_path / 'x')), tmp_path).val()


def test_the_evaluator_reads_a_file_that_differs_a_little(tmp_path, warned, capfd):
    def renamed(content):
        for image in content['images']:
            image['file_name'] = image['file_name'].replace('more', 'val').replace('.png', '.jpg')

    write_coco(tmp_path, 'val')
    write_coco(tmp_path, 'more', 4, change=renamed)
    Loops(evaluated(tmp_path, 'more'), tmp_path).val()  # pictures were converted
    assert 'which has 4 images, and the data 3' in warned[0]
    content = json.loads((tmp_path / 'val.json').read_text())
    content['images'][0]['file_name'] = 'another.png'
    (leaf,) = [guarded_dataset(coco(tmp_path, 'val', test_mode=True), 'val')]
    assert [fault.kind for fault in check_truth(content, 'x.json', [leaf], 'val')] == ['other files']


def test_each_evaluator_of_the_same_data_is_looked_at(tmp_path, capfd):
    write_coco(tmp_path, 'val')
    write_coco(tmp_path, 'old')
    cfg = evaluated(tmp_path, 'val')
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    assert check_splits(cfg, ('val', 'test'), masks=False)['test'] == {'same_as': 'val'}
    cfg.test_evaluator = {'type': 'CocoMetric', 'ann_file': str(tmp_path / 'old.json')}
    report = check_splits(cfg, ('val', 'test'), masks=False)
    assert [list(report[split]['faults']) for split in ('val', 'test')] == [[], ['other truth']]


def test_the_evaluator_has_other_classes(tmp_path, capfd):
    """mmdet's metric numbers the classes in the order of its file."""
    config('mmdet')
    content = write_coco(tmp_path, 'val')
    leaf = guarded_dataset(coco(tmp_path, 'val', test_mode=True), 'val')
    assert check_truth(content, 'x.json', [leaf], 'val') == []
    for categories in (content['categories'][::-1], content['categories'][1:]):
        (fault,) = check_truth({**content, 'categories': categories}, 'x.json', [leaf], 'val')
        assert fault.kind == 'other truth'
        assert '(disc, bar) these, in its order: bar' in fault.detail


@pytest.mark.parametrize(('kind', 'reader'), [('gRefCOCOMetric', 'coco'), ('DODCocoMetric', '_coco_api')])
def test_metrics_with_a_meaning_of_their_own(kind, reader, tmp_path, warned, capfd):
    """What is wrong in a file of CocoMetric is a convention of theirs: it is read as it is, and nothing is told."""
    write_coco(tmp_path, 'val')
    other = write_coco(tmp_path, 'sentences', change=lambda content: each('category_id', -1)(content))
    for number, entry in enumerate(other['annotations']):
        entry['id'] = number
    other['categories'] = [{'id': 1, 'name': 'a disc on the left'}]
    (tmp_path / 'sentences.json').write_text(json.dumps(other))
    cfg = evaluated(tmp_path, 'sentences', type=kind)
    (metric,) = Loops(cfg, tmp_path).val().evaluator.metrics
    assert getattr(metric, reader).dataset['annotations'] == other['annotations']
    assert warned == []
    assert 'other truth' not in kinds(cfg, 'val')
    with pytest.raises(BadDataError):
        Loops(evaluated(tmp_path, 'sentences'), tmp_path).val()


@pytest.mark.parametrize('first', [0, '0', 'a'])
def test_annotations_that_pycocotools_cannot_note(first, tmp_path, warned, capfd):
    """The truth itself as predictions has mAP 1."""

    def numbered(content):
        for number, entry in enumerate(content['annotations']):
            entry['id'] = number if first == 0 else f'{first}{number}' if number else first

    content = write_coco(tmp_path, 'val', change=numbered)
    cfg = evaluated(tmp_path, 'val')
    loop = Loops(cfg, tmp_path).val()
    assert f'an annotation has the number {first!r}' in warned[0]
    assert 'annotation number' in kinds(cfg, 'val')
    metric = loop.evaluator.metrics[0]
    metric.dataset_meta = {'classes': CLASSES}
    for image in content['images']:
        boxes = [entry['bbox'] for entry in content['annotations'] if entry['image_id'] == image['id']]
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], dtype=float)
        found = {'img_id': image['id'], 'bboxes': boxes, 'scores': np.full(2, 0.9), 'labels': np.arange(2)}
        metric.results.append(({'img_id': image['id']}, found))
    assert metric.evaluate(3)['coco/bbox_mAP'] == 1.0


def test_numbers_of_annotations_that_are_right_stay(tmp_path, capfd):
    config('mmdet')
    content = write_coco(tmp_path, 'val', change=lambda content: [
        entry.update(id=entry['id'] + 7) for entry in content['annotations']
    ])  # fmt: skip
    with countable_annotations():
        metric = Evaluator({'type': 'CocoMetric', 'ann_file': str(tmp_path / 'val.json')}).metrics[0]
    assert sorted(metric._coco_api.anns) == [entry['id'] for entry in content['annotations']]
