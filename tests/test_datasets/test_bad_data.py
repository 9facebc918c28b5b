"""Each kind of fault, in both modes, through real loaders; and good data is what it was."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS as ROOT_DATASETS
from mmengine.registry import init_default_scope
from torch.utils.data import DataLoader

from mmext_backbones.datasets.bad_data import kinds as module
from mmext_backbones.datasets.bad_data.classes import check_classes, check_num_classes
from mmext_backbones.datasets.bad_data.coco import check_categories, check_entries
from mmext_backbones.datasets.bad_data.dataset import guarded_dataset, inner_datasets
from mmext_backbones.datasets.bad_data.guard import guard_of
from mmext_backbones.datasets.bad_data.images import file_fault, unreadable
from mmext_backbones.datasets.bad_data.kinds import KINDS, BadDataError, Fault, log_faults, read_faults, stop
from mmext_backbones.datasets.bad_data.report import check_splits, count_errors, report_lines, write_report
from mmext_backbones.datasets.bad_data.runner import needs_masks
from mmext_backbones.datasets.shapes.files import SEMANTIC_CLASSES, make_shapes
from mmext_backbones.datasets.shapes.scenes import CLASSES
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.explain import explain

from .toy import Loops, PlainLoops

sys.path.insert(0, str(Path(__file__).parents[2] / 'dev' / 'trials'))
from breaking import FAULTS

LIBRARIES = {'detection': 'mmdet', 'segmentation': 'mmseg', 'classification': 'mmpretrain'}
LOAD = {'type': 'LoadImageFromFile'}
CASES = [(name, task) for name, fault in FAULTS.items() for task in fault.tasks]
SIZE = (48, 64)


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('clean') / 'set', size=SIZE, num_train=4, num_val=4, seed=3)


@pytest.fixture
def root(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / 'set')


def config(task: str, root: Path, workers: int = 0) -> Config:
    pytest.importorskip(LIBRARIES[task])
    init_default_scope(LIBRARIES[task])
    evaluator: dict = {'type': 'IoUMetric' if task == 'segmentation' else 'Accuracy'}
    if task == 'detection':
        load = {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}
        flip = {'type': 'RandomFlip', 'prob': 0.5}
        sets = {
            split: {
                'type': 'CocoDataset',
                'data_root': str(root),
                'ann_file': f'annotations/instances_{split}.json',
                'data_prefix': {'img': split},
                'metainfo': {'classes': CLASSES},
                'test_mode': split == 'val',
                'pipeline': [LOAD, load, flip, {'type': 'PackDetInputs'}],
            }
            for split in ('train', 'val')
        }
        evaluator = {'type': 'CocoMetric', 'ann_file': str(root / 'annotations' / 'instances_val.json')}
    elif task == 'segmentation':
        sets = {
            split: {
                'type': 'BaseSegDataset',
                'data_root': str(root),
                'data_prefix': {'img_path': split, 'seg_map_path': f'semantic/{split}'},
                'img_suffix': '.png',
                'metainfo': {'classes': SEMANTIC_CLASSES},
                'reduce_zero_label': True,
                'pipeline': [LOAD, {'type': 'LoadAnnotations'}, {'type': 'PackSegInputs'}],
            }
            for split in ('train', 'val')
        }
    else:
        sets = {
            split: {
                'type': 'CustomDataset',
                'data_root': str(root),
                'data_prefix': f'classes/{split}',
                'classes': sorted(CLASSES),
                'pipeline': [LOAD, {'type': 'Resize', 'scale': 32}, {'type': 'PackInputs'}],
            }
            for split in ('train', 'val')
        }
    loaders = {
        f'{split}_dataloader': {
            'batch_size': 1,
            'num_workers': workers,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'collate_fn': {'type': 'pseudo_collate'},
            'dataset': sets[split],
        }
        for split in sets
    }
    number = len(SEMANTIC_CLASSES if task == 'segmentation' else CLASSES)
    model = {'type': 'x', 'head': {'num_classes': number}}
    return Config({'default_scope': LIBRARIES[task], 'model': model, 'val_evaluator': evaluator, **loaders})


def read_all(cfg: Config, mode: str | None, log_dir: Path) -> dict[str, list]:
    """What the loaders of a training and a validation yield; those of the library when `mode` is None."""
    cfg.bad_data = mode
    loaders = (Loops if mode else PlainLoops)(cfg, log_dir)
    train = list(loaders.build_train_loop(cfg.train_dataloader).dataloader)
    return {'train': train, 'val': list(loaders.build_val_loop(cfg.val_dataloader).dataloader)}


def names(batches: list[dict]) -> list[str]:
    return [Path(batch['data_samples'][0].img_path).name for batch in batches]


@pytest.mark.parametrize(('name', 'task'), CASES, ids=lambda value: value.replace(' ', '_'))
def test_every_fault_in_both_modes(name, task, root, tmp_path, capfd):
    fault = FAULTS[name]
    split = 'val' if len(name) % 2 else 'train'
    fault.apply(np.random.default_rng(1), root, split, task)
    cfg = config(task, root)

    report = check_splits(cfg, ('train', 'val'), masks=needs_masks(cfg))
    found = {kind for part in report.values() for kind, entry in part['faults'].items() if entry['level'] == 'error'}
    if fault.kinds:
        assert found & set(fault.kinds), report
        with pytest.raises(UserError) as caught:
            read_all(cfg, 'stop', tmp_path / 'stop')
        message = str(caught.value)
        assert 'Traceback' not in message
        assert 'classes' in message or str(root) in message
        assert fault.fatal or '--bad-data skip' in message
    else:
        assert not found, report
        assert len(read_all(cfg, 'stop', tmp_path / 'stop')['val'])

    if fault.fatal:
        with pytest.raises(UserError):
            read_all(cfg, 'skip', tmp_path / 'skip')
        return
    read = read_all(cfg, 'skip', tmp_path / 'skip')
    told = read_faults(tmp_path / 'skip' / 'bad_data')
    assert {fault.kind for faults in told.values() for fault in faults} == found
    assert set(told) <= {split, 'train' if task == 'classification' else split}
    if split == 'train':
        assert len(read['train']) == report['train']['samples']
    elif fault.kinds and KINDS[next(iter(found))].drops == 'image' and 'image' not in name:
        assert len(read['val']) == report['val']['samples'] - 1


@pytest.mark.parametrize('task', LIBRARIES)
def test_good_data_is_what_it_was(task, root, tmp_path, capfd):
    """The same tensors and the same random numbers, before, within and after."""
    results = []
    for mode in (None, 'stop', 'skip'):
        cfg = config(task, root)
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        read = read_all(cfg, mode, tmp_path / str(mode))
        batches = read['train'] + read['val']
        after = (random.random(), np.random.random(), torch.rand(()).item())
        results.append(([batch['inputs'][0] for batch in batches], after))
        assert not (tmp_path / str(mode) / 'bad_data').exists()
    for inputs, after in results[1:]:
        assert after == results[0][1]
        assert all(torch.equal(a, b) for a, b in zip(inputs, results[0][0], strict=True))


def test_skip_is_the_same_in_every_process(root, tmp_path, capfd):
    for path in sorted((root / 'train').glob('*.png'))[1:3]:
        path.write_bytes(b'no image')
    read = [names(read_all(config('detection', root, n), 'skip', tmp_path / str(n))['train']) for n in (0, 2)]
    assert read[0] == read[1]
    assert read[0][0] == '000000.png'
    assert set(read[0]) == {'000000.png', '000003.png'}
    told = [read_faults(tmp_path / str(n) / 'bad_data') for n in (0, 2)]
    assert told[0] == told[1]
    assert len(told[0]['train']) == 2


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_an_error_of_a_worker_is_one_message(content, root, tmp_path, capfd):
    path = root / 'train' / '000002.png'
    path.write_bytes(content)
    with pytest.raises(BadDataError) as caught:
        read_all(config('detection', root, 2), 'stop', tmp_path)
    message = explain(caught.value)
    assert message.startswith(repr(str(path)))
    assert 'Traceback' not in message
    assert len(message.splitlines()) == 3
    assert 'Traceback' in caught.value.__notes__[0]


def test_nothing_but_bad_images(root, tmp_path, capfd):
    for path in root.rglob('*.png'):
        path.write_bytes(b'')
    with pytest.raises(BadDataError, match='in a row cannot be used'):
        read_all(config('segmentation', root), 'skip', tmp_path / 'a')
    cfg = config('segmentation', root)
    cfg.bad_data = 'skip'
    with pytest.raises(BadDataError, match='the val data has no sample that can be used'):
        Loops(cfg, tmp_path / 'b').build_val_loop(cfg.val_dataloader)


def test_a_metric_does_not_miss_what_was_left_out(root, tmp_path, capfd):
    (root / 'val' / '000001.png').write_bytes(b'')
    path = root / 'annotations' / 'instances_val.json'
    data = json.loads(path.read_text())
    other = next(entry for entry in data['annotations'] if entry['image_id'] == 2)
    other['bbox'] = [float('nan')] * 4
    path.write_text(json.dumps(data))
    cfg = config('detection', root)
    cfg.bad_data = 'skip'
    loop = Loops(cfg, tmp_path).build_val_loop(cfg.val_dataloader)
    assert names(list(loop.dataloader)) == ['000000.png', '000002.png', '000003.png']
    coco = loop.evaluator.metrics[0]._coco_api
    assert coco.get_img_ids() == [0, 2, 3]
    assert other['id'] not in coco.get_ann_ids()
    assert not coco.img_ann_map.get(1)


def test_wrappers_are_kept(root, tmp_path, capfd):
    cfg = config('detection', root)
    inner = cfg.train_dataloader.dataset
    mix = {'type': 'MultiImageMixDataset', 'dataset': {'type': 'RepeatDataset', 'times': 2, 'dataset': inner}}
    mix['pipeline'] = [{'type': 'RandomFlip', 'prob': 0.0}]
    mix['dataset']['dataset'] = {**inner, 'pipeline': inner['pipeline'][:2]}
    built = guarded_dataset({'type': 'ConcatDataset', 'datasets': [mix['dataset'], mix['dataset']]}, 'train')
    assert len(built) == 16
    built = guarded_dataset(mix, 'train')
    assert type(built).__name__ == 'MultiImageMixDataset'
    (leaf,) = inner_datasets(built)
    assert guard_of(leaf) is not None
    assert len(built) == 8
    (root / 'train' / '000000.png').write_bytes(b'')
    with pytest.raises(BadDataError, match=r'000000\.png'):
        built[4]


def test_steps_that_are_switched_are_guarded_too(root, capfd):
    """mmdet's PipelineSwitchHook gives the data set another pipeline."""
    from mmengine.dataset import Compose

    built = guarded_dataset(config('detection', root).train_dataloader.dataset, 'train')
    built.pipeline = Compose([lambda info: 1 // 0])
    with pytest.raises(BadDataError, match=r'000001\.png.*fails on it: ZeroDivisionError'):
        built[1]


def test_a_refused_sample_is_drawn_anew(root, capfd):
    """A step that answers None is mmengine's way to draw another sample, and no fault."""
    built = guarded_dataset(config('detection', root).train_dataloader.dataset, 'train')
    load, seen = built.pipeline.transforms[0], []

    def refuse(info):
        seen.append(info)
        return None if len(seen) == 1 else load(info)

    built.pipeline.transforms[0] = refuse
    built[0]
    assert len(seen) == 2


# --------------------------------------------------------------------------------------------------------------------
# Classes


def test_classes_of_the_model():
    def check(**model):
        check_num_classes({'model': model, 'data_preprocessor': {'num_classes': 1000}}, ('a', 'b', 'c'), 'train')

    with pytest.raises(BadDataError) as caught:
        check(roi_head={'bbox_head': [{'num_classes': 80}, {'num_classes': 3}]}, backbone={'num_classes': 1000})
    assert 'the train data has 3 classes (a, b, c), and model.roi_head.bbox_head.0.num_classes is 80' in str(
        caught.value
    )
    assert '--cfg-options model.roi_head.bbox_head.0.num_classes=3\n' in str(caught.value)
    check(bbox_head={'num_classes': 3}, rpn_head={'num_classes': 1}, backbone={'num_classes': 1000})
    check(head={'num_classes': 80}, semantic_head={'num_stuff_classes': 53})  # panoptic
    check_num_classes({'model': {'head': {'num_classes': 80}}}, None, 'train')

    # the preprocessor's number is read where pictures are mixed
    with pytest.raises(BadDataError, match=r'and data_preprocessor\.num_classes is 1000'):
        check(head={'num_classes': 3}, train_cfg={'augments': [{'type': 'Mixup'}]})
    with pytest.raises(BadDataError, match=r'and model\.data_preprocessor\.num_classes is 9'):
        check(data_preprocessor={'num_classes': 9, 'to_onehot': True})


def classes_refused(model: dict, number: int = 2, parts: tuple[int, int] | None = None) -> str:
    """The options that a refusal names, as one text; empty if there is none."""
    try:
        check_num_classes({'model': model}, tuple('abcdefgh'[:number]), 'train', parts)
    except BadDataError as error:
        return str(error).splitlines()[1].partition('--cfg-options ')[2]
    return ''


def test_things_and_stuff_are_classes():
    head = {'num_things_classes': 80, 'num_stuff_classes': 0, 'loss_cls': {'class_weight': [1.0] * 80 + [0.1]}}
    told = classes_refused({'panoptic_head': head, 'panoptic_fusion_head': {'num_things_classes': 80}})
    assert told == (
        'model.panoptic_head.num_things_classes=2 model.panoptic_head.loss_cls.class_weight=[1.0,1.0,0.1] '
        'model.panoptic_fusion_head.num_things_classes=2'
    )
    right = {'num_things_classes': 2, 'num_stuff_classes': 0, 'loss_cls': {'class_weight': [1.0, 1.0, 0.1]}}
    assert classes_refused({'panoptic_head': right}) == ''
    both = {'num_things_classes': 2, 'num_stuff_classes': 3}
    assert classes_refused({'panoptic_head': both}) == ''  # a model for both on data of things
    assert classes_refused({'panoptic_head': both}, 5) == ''
    assert classes_refused({'panoptic_head': both}, 5, (2, 3)) == ''
    assert classes_refused({'panoptic_head': both}, 5, (3, 2)).split() == [
        'model.panoptic_head.num_things_classes=3',
        'model.panoptic_head.num_stuff_classes=2',
    ]
    fpn = {'semantic_head': {**both, 'num_classes': 54}, 'roi_head': {'bbox_head': [{'num_classes': 80}]}}
    assert classes_refused(fpn, 5, (2, 3)) == 'model.roi_head.bbox_head.0.num_classes=2'
    assert classes_refused(fpn, 5) == ''


def test_other_numbers_of_classes():
    loss = {'type': 'CrossEntropyLoss', 'class_weight': [1.0, 2.0]}
    head = {'num_classes': 2, 'loss_decode': [loss, {'type': 'DiceLoss'}]}
    assert classes_refused({'decode_head': head, 'auxiliary_head': [head]}) == ''
    assert classes_refused({'decode_head': head, 'auxiliary_head': [{'num_classes': 19}]}, 2).startswith(
        'model.auxiliary_head.0.num_classes=2'
    )
    told = classes_refused({'decode_head': head}, 4)
    assert told == 'model.decode_head.num_classes=4 model.decode_head.loss_decode.0.class_weight=[1.0,1.0,1.0,1.0]'
    binary = {'num_classes': 2, 'out_channels': 1}
    assert classes_refused({'decode_head': binary}) == ''
    assert classes_refused({'decode_head': binary}, 3) == (
        'model.decode_head.num_classes=3 model.decode_head.out_channels=3'
    )
    transformer = {'num_classes': 2, 'num_queries': 100, 'out_channels': 256}
    assert classes_refused({'decode_head': transformer}) == ''
    assert classes_refused({'neck': {'out_channels': 256}, 'bbox_head': {'num_classes': 2, 'out_channels': 9}}) == ''


def test_the_classes_of_videos_are_not_compared():
    class BaseVideoDataset(SimpleNamespace):
        pass

    cfg = {'model': {'bbox_head': {'num_classes': 1}}}
    check_classes(cfg, [BaseVideoDataset(metainfo={'classes': ['a', 'b', 'c']})], 'val')
    with pytest.raises(BadDataError, match='the val data has 3 classes'):
        check_classes(cfg, [SimpleNamespace(metainfo={'classes': each}) for each in (['a'], ['a', 'b', 'c'])], 'val')


def test_another_number_of_class_folders(root, tmp_path, capfd):
    cfg = config('classification', root)
    cfg.train_dataloader.dataset['classes'] = ['a', 'b']
    with pytest.raises(BadDataError, match='has 5 class folders') as caught:
        read_all(cfg, 'stop', tmp_path)
    assert 'model.head.num_classes=5' in str(caught.value)
    cfg = config('classification', root)
    cfg.model.head.num_classes = 1000
    with pytest.raises(BadDataError, match=r'model\.head\.num_classes is 1000'):
        read_all(cfg, 'stop', tmp_path)
    assert count_errors(check_splits(cfg, ('train', 'val'), masks=False)) == 2


def test_labels_of_an_annotation_file(root, tmp_path, capfd):
    names = [f'{path.parent.name}/{path.name}' for path in sorted((root / 'classes/train').glob('*/*.png'))]
    ann_file = tmp_path / 'labels.txt'
    ann_file.write_text('\n'.join(f'{name} {9 if i == 2 else 0}' for i, name in enumerate(names)))
    cfg = config('classification', root)
    cfg.train_dataloader.dataset['ann_file'] = str(ann_file)
    with pytest.raises(BadDataError, match='label 9, and there are 5 classes'):
        read_all(cfg, 'stop', tmp_path)
    ann_file.write_text('\n'.join(names))  # no labels
    with pytest.raises(BadDataError, match=r'labels\.txt.*cannot be read as annotations'):
        read_all(cfg, 'skip', tmp_path)


def test_unknown_mode(root, tmp_path, capfd):
    with pytest.raises(UserError, match="bad_data='ignore': expected 'stop' or 'skip'"):
        read_all(config('segmentation', root), 'ignore', tmp_path)


# --------------------------------------------------------------------------------------------------------------------
# Parts


def test_compressed_runs_are_read_as_pycocotools_does():
    masks = pytest.importorskip('pycocotools.mask')
    from mmext_backbones.datasets.bad_data.coco import _decode_runs

    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.5, 1.0):
        for _ in range(10):
            mask = (rng.random(rng.integers(1, 150, 2)) < density).astype(np.uint8)
            counts = _decode_runs(masks.encode(np.asfortranarray(mask))['counts'].decode())
            flat = np.repeat(np.arange(len(counts)) % 2, counts)
            assert (flat == mask.ravel(order='F')).all()
    for broken in ('', 'o', '0' * 3 + '\x7f', 'oooooooooo0'):
        assert _decode_runs(broken) is None


HUGE = 10**400  # json reads whole numbers of any length


@pytest.mark.parametrize(
    ('entry', 'kind'),
    [
        ({'bbox': [1, 1, HUGE, 3]}, 'box numbers'),
        ({'bbox': [1, 1, 1e300, 3]}, 'box numbers'),  # infinite in float32
        ({'area': HUGE}, 'box numbers'),
        ({'segmentation': [[1, 1, HUGE, 5, 3, 5]]}, 'mask'),
        ({'segmentation': {'size': [9, 9], 'counts': [HUGE, 1]}}, 'mask'),
        ({'segmentation': {'size': [9, 9], 'counts': [2**62, 2**62, 2**62, 2**62 + 81]}}, 'mask'),  # 81 in int64
    ],
)
def test_numbers_that_no_type_holds(entry, kind):
    image = {'id': 1, 'file_name': 'a.png', 'width': 9, 'height': 9}
    good = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [1, 1, 3, 3], 'area': 9}
    good['segmentation'] = [[1, 1, 4, 1, 4, 4]]
    data = {'images': [image], 'categories': [{'id': 1, 'name': 'a'}], 'annotations': [good]}
    assert check_entries(data, 'x.json', masks=True)[0] == []
    found, rest = check_entries({**data, 'annotations': [{**good, **entry}]}, 'x.json', masks=True)
    assert [fault.kind for fault in found if KINDS[fault.kind].level == 'error'] == [kind]
    assert rest['annotations'] == []
    found, _ = check_entries({**data, 'images': [{**image, 'width': HUGE}]}, 'x.json', masks=False)
    assert [fault.kind for fault in found] == ['image entry']


def test_what_is_dropped_with_an_image():
    """Annotations of an image with an error go with it, without errors of their own."""
    image = {'file_name': 'a.png', 'width': 9, 'height': 9}
    box = {'category_id': 1, 'bbox': [1, 1, 3, 3], 'area': 9}
    data = {
        'images': [{**image, 'id': 1, 'height': None}, {**image, 'id': 2}],
        'categories': [{'id': 1, 'name': 'a'}],
        'annotations': [{**box, 'id': 1, 'image_id': 1}, {**box, 'id': 2, 'image_id': 2}],
    }
    found, rest = check_entries(data, 'x.json', masks=False)
    assert [fault.kind for fault in found] == ['image entry']
    assert [entry['id'] for entry in rest['annotations']] == [2]
    assert [entry['id'] for entry in rest['images']] == [2]
    assert len(data['annotations']) == 2  # the caller's own is as it was
    del data['annotations']  # as files of test images have it
    check_categories(data, 'x.json', ['a'])
    assert check_entries(data, 'x.json', masks=True)[1]['annotations'] == []


def test_categories_that_are_not_there():
    """Where the others have their numbers all the same it is told; where mmdet would give them others it stops."""
    data = {'images': [], 'categories': [{'id': 1, 'name': 'a'}, {'id': 2, 'name': 'b'}]}
    assert check_categories(data, 'x.json', ['a']) == check_categories(data, 'x.json', ['a', 'b']) == []
    (fault,) = check_categories(data, 'x.json', ['a', 'b', 'c'])
    assert fault.kind == 'missing categories'
    assert fault.detail == '1 of the 3 classes of the config are no categories of this file: c.'
    for classes in (['c', 'a', 'b'], ['a', 'c', 'b'], ['c']):
        with pytest.raises(BadDataError, match=r'1 of the . classes of the config are no categories of this file: c'):
            check_categories(data, 'x.json', classes)
    for classes in (['b', 'a'], ['b', 'a', 'c']):
        with pytest.raises(BadDataError, match="in the file's order"):
            check_categories(data, 'x.json', classes)


def test_postscript_is_not_handed_to_a_program(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin, Image

    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('a program was called'))
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')
    assert unreadable(str(tmp_path / 'a.eps')).detail == 'cannot be read: it is PostScript and no image'


@pytest.mark.parametrize('ending', [b'', b'\0' * 100])
def test_a_cut_jpeg_is_told_by_its_end(ending, tmp_path):
    """OpenCV before 4.12 fills the rest with grey and says nothing."""
    from PIL import Image

    path = tmp_path / 'a.jpg'
    pixels = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, 'JPEG')
    whole = path.read_bytes()
    path.write_bytes(whole + ending)
    assert file_fault(str(path)) is None
    path.write_bytes(whole + bytes(9999))  # more than is looked at: decoded, and found whole
    assert file_fault(str(path)) is None
    path.write_bytes(whole[: len(whole) // 2])
    assert file_fault(str(path)).kind == 'truncated'


def test_records_of_several_processes(tmp_path):
    faults = [Fault('missing', 'b.png', 'x'), Fault('empty', 'a.png', 'y')]
    log_faults(tmp_path / 'r', 'train', faults)
    log_faults(tmp_path / 'r', 'train', [])
    (tmp_path / 'r' / 'rank1-1.jsonl').write_text('["train", "missing", "b.png", "x"]\n["train", "emp')
    assert read_faults(tmp_path / 'r') == {'train': [Fault('missing', 'b.png', 'x'), Fault('empty', 'a.png', 'y')]}
    assert read_faults(tmp_path / 'nowhere') == {}


def test_every_kind_says_what_to_do():
    assert all(
        kind.level in ('error', 'warning', 'note') and kind.remedy.endswith(('.', ')')) for kind in KINDS.values()
    )
    text = str(stop([Fault('missing', f'{i}.png', 'is gone') for i in range(9)]))
    assert "'2.png': is gone\n... and 6 more." in text
    assert KINDS['missing'].remedy in text
    assert str(BadDataError(f'Caught ...\n{module.__name__}.BadDataError: the end\n')) == 'the end'


def test_error_in_a_worker_keeps_its_kind():
    class Failing(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise stop([Fault('empty', 'a.png', 'is an empty file')])

    with pytest.raises(BadDataError, match=r"^'a\.png': is an empty file\n"):
        next(iter(DataLoader(Failing(), num_workers=1)))


@pytest.mark.parametrize(
    ('number', 'told'),
    [(signal.SIGABRT, 'fewer num_workers'), (signal.SIGKILL, 'the memory of this machine ran out')],
    ids=['SIGABRT', 'SIGKILL'],
)
def test_a_worker_that_is_killed(number, told):
    class Dying(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            os.kill(os.getpid(), number)

    with pytest.raises(RuntimeError) as caught:
        next(iter(DataLoader(Dying(), num_workers=1)))
    message = explain(caught.value)
    assert told in message


def test_report(root, tmp_path, capfd):
    (root / 'train' / '000001.png').write_bytes(b'')
    cfg = config('segmentation', root)
    cfg.test_dataloader = cfg.val_dataloader
    calls = []
    report = check_splits(cfg, ('train', 'val', 'test'), masks=False, progress=lambda *args: calls.append(args))
    assert calls[-1] == ('val', 4, 4)
    assert count_errors(report) == 1
    assert report['test'] == {'same_as': 'val'}
    lines = '\n'.join(report_lines(report))
    assert f'error        1  empty: {KINDS["empty"].remedy}' in lines
    assert 'val: 4 samples' in lines
    write_report(report, tmp_path / 'new' / 'report.json')
    assert json.loads((tmp_path / 'new' / 'report.json').read_text()) == report
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['report.json']
    fast = check_splits(cfg, ('train', 'val'), masks=False, fast=True)
    assert fast['train']['faults'] == report['train']['faults']


def test_the_registry_builds_guarded_data(root, capfd):
    inner = config('segmentation', root).train_dataloader.dataset
    built = ROOT_DATASETS.build({'type': 'mmext_backbones.GuardedDataset', 'dataset': inner, 'split': 'train'})
    assert type(built).__name__ == 'BaseSegDataset'
