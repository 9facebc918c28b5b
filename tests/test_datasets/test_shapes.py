"""The Shapes data set: what is drawn, what lies on disk, and that it lies there whole or not at all."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmext_backbones.datasets.shapes import files, scenes
from mmext_backbones.datasets.shapes.files import (
    SEMANTIC_CLASSES,
    SEMANTIC_PALETTE,
    default_shapes_dir,
    make_shapes,
    mask_to_rle,
    rle_to_mask,
)
from mmext_backbones.datasets.shapes.scenes import CLASSES, PALETTE, render_scene

ROOT = Path(__file__).resolve().parents[2]
SMALL = {'size': (48, 64), 'num_train': 6, 'num_val': 3, 'seed': 5}


def read_tree(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob('*')) if path.is_file()}


def read_png(path):
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A finished set; tests only read it."""
    return make_shapes(tmp_path_factory.mktemp('shapes') / 'small', **SMALL)


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('make_shapes_tool', ROOT / 'tools' / 'make_shapes.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize('size', [32, 96, (40, 70)])
def test_scene_shapes_and_rules(size):
    H, W = (size, size) if isinstance(size, int) else size
    for seed in range(25):
        scene = render_scene(np.random.default_rng(seed), size)
        assert scene.image.shape == (H, W, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.labels), H, W)
        assert scene.masks.dtype == bool
        assert 1 <= len(scene.labels) <= 6
        assert scene.masks.sum(axis=0).max() == 1, 'a pixel belongs to two instances'
        assert scene.masks.sum(axis=(1, 2)).min() >= scenes.MIN_PIXELS


def test_an_object_keeps_a_visible_share():
    labels = [CLASSES.index('square')] * 6
    for seed in range(10):
        scene = render_scene(np.random.default_rng(seed), 64, labels=labels, scale=(0.5, 0.5))
        # the longer side of each box is 32 px: even a turned 1:1.35 rectangle fills over 0.4 of 32 x 24
        assert scene.masks.sum(axis=(1, 2)).min() >= 0.4 * 0.4 * 32 * 24


def test_labels_follow_the_request():
    for label in range(len(CLASSES)):
        scene = render_scene(np.random.default_rng(label), 32, labels=(label,), scale=(0.4, 0.75))
        assert scene.labels.tolist() == [label]


def test_outlines_fill_their_known_share_of_the_box():
    # area / box area of an upright outline: circle pi/4, square 1, triangle 1/2, cross 1 - 0.6^2;
    # star: 5 R r sin 36 over a box of 2 R sin 72 by R (1 + cos 36), with r = 0.58 R
    star = 5 * 0.58 * math.sin(math.radians(36)) / (2 * math.sin(math.radians(72)) * (1 + math.cos(math.radians(36))))
    expected = {'circle': math.pi / 4, 'square': 1, 'triangle': 0.5, 'star': star, 'cross': 1 - 0.6**2}
    for name, share in expected.items():
        points = scenes._OUTLINES[name]
        points = (points - points.min(axis=0)) / np.ptp(points, axis=0) * (60, 60) + (2, 2)
        top, left, alpha = scenes._rasterize(points, 64, 64)
        assert (top, left, alpha.shape) == (2, 2, (60, 60))
        # 4x supersampling, and OpenCV fills the outline's own subpixels: up to 1/8 px more all round
        assert alpha.sum() / 3600 == pytest.approx(share, abs=0.02)


def test_object_sizes():
    large, small = 0, 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        label = seed % len(CLASSES)
        scene = render_scene(rng, 200, labels=(label,))
        _, _, w, h = files._mask_to_box(scene.masks[0])
        # the half-coverage mask may lose the tips of a star, and the image may cut a twentieth
        share = max(w, h) / 200
        assert scenes.SMALL_SCALE[0] * 0.75 <= share <= scenes.LARGE_SCALE[1] + 0.01
        small += share < 0.23
        large += share >= 0.23
    # four standard deviations of 300 draws
    assert abs(small / (small + large) - scenes.SMALL_RATE) < 0.1


def test_shapes_stand_out_from_what_surrounds_them():
    distances = []
    for seed in range(40):
        scene = render_scene(np.random.default_rng(seed), 96)
        lab = cv2.cvtColor(scene.image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        for mask in scene.masks:
            ring = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~mask
            distances.append(np.linalg.norm(lab[mask].mean(axis=0) - lab[ring].mean(axis=0)))
    # about 10 is a difference that a person sees at a glance; objects in a heap may come nearer to the mean of it
    assert np.percentile(distances, 2) > 15
    assert np.median(distances) > 35


def test_the_main_hue_hints_at_the_class():
    for label in range(len(CLASSES)):
        hues = []
        for seed in range(30):
            scene = render_scene(np.random.default_rng((seed, label)), 32, labels=(label,), scale=(0.6, 0.6))
            hsv = cv2.cvtColor(scene.image, cv2.COLOR_RGB2HSV_FULL)[scene.masks[0]]
            turns = hsv[:, 0] / 256 - label / len(CLASSES)
            hues.append(np.median(np.abs((turns + 0.5) % 1.0 - 0.5)))  # distance on the circle
        # the second colour and the noise move the hue of a picture; classes are 0.2 apart
        assert np.median(hues) < 0.1


@pytest.mark.parametrize('size', [31, 0, -5, 64.0, '64', True, None, (64,), (64, 31), (64, 64, 64), [64, 'a']])
def test_bad_size(size, tmp_path):
    with pytest.raises(ValueError, match=r'size=.*expected an integer or \(H, W\), each at least 32'):
        render_scene(np.random.default_rng(0), size)
    with pytest.raises(ValueError, match=r'size=.*expected'):
        make_shapes(tmp_path / 'set', size=size)
    assert not (tmp_path / 'set').exists()


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'labels': [0, 5]}, r'labels=\[0, 5\]: expected'),
        ({'labels': [-1]}, r'labels=\[-1\]: expected'),
        ({'scale': (0.5, 0.2)}, r'scale=\(0.5, 0.2\): expected'),
        ({'scale': (0.0, 0.2)}, r'scale=\(0.0, 0.2\): expected'),
    ],
)
def test_bad_scene_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        render_scene(np.random.default_rng(0), 64, **kwargs)


@pytest.mark.parametrize(
    ('name', 'value'), [('num_train', 0), ('num_val', -1), ('num_val', 2.5), ('seed', -1), ('seed', 2**32)]
)
def test_bad_parameters(name, value, tmp_path):
    with pytest.raises(ValueError, match=f'{name}={value}: expected an integer'):
        make_shapes(tmp_path / 'set', **{name: value})
    with pytest.raises(ValueError, match=f'{name}={value}: expected an integer'):
        default_shapes_dir(**{name: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('shape', [(1, 1), (5, 7), (33, 40)])
@pytest.mark.parametrize('fill', [0.0, 0.3, 1.0])
def test_rle_round_trip(shape, fill):
    mask_utils = pytest.importorskip('pycocotools.mask')
    mask = np.random.default_rng(0).random(shape) < fill
    rle = mask_to_rle(mask)
    assert sum(rle['counts']) == mask.size
    np.testing.assert_array_equal(rle_to_mask(rle), mask)
    compressed = mask_utils.frPyObjects(json.loads(json.dumps(rle)), *shape)
    np.testing.assert_array_equal(mask_utils.decode(compressed).astype(bool), mask)


# ------------------------------------------------------------------------------------------------- the set on disk


def test_layout(small):
    H, W = SMALL['size']
    assert sorted(path.name for path in small.iterdir()) == sorted(
        ['train', 'val', 'annotations', 'semantic', 'classes', 'shapes.json']
    )
    for split, num in (('train', 6), ('val', 3)):
        names = [f'{i:06d}.png' for i in range(num)]
        assert sorted(path.name for path in (small / split).iterdir()) == names
        assert sorted(path.name for path in (small / 'semantic' / split).iterdir()) == names
        for name in names:
            assert read_png(small / split / name).shape == (H, W, 3)
            assert read_png(small / 'semantic' / split / name).shape == (H, W)
        folders = small / 'classes' / split
        assert sorted(path.name for path in folders.iterdir()) == sorted(CLASSES)
        for name in CLASSES:
            pictures = sorted(path.name for path in (folders / name).iterdir())
            assert pictures == names[: math.ceil(num / len(CLASSES))]
    parameters = json.loads((small / 'shapes.json').read_text())
    assert parameters['version'] == files.FORMAT_VERSION
    assert {key: parameters[key] for key in SMALL} == {**SMALL, 'size': list(SMALL['size'])}


def test_png_holds_the_scene_in_rgb(small):
    scene = render_scene(files._rng(5, 'train', 2, (48, 64)), (48, 64))
    np.testing.assert_array_equal(read_png(small / 'train' / '000002.png')[..., ::-1], scene.image)


def test_palettes_name_each_class_once():
    assert list(SEMANTIC_CLASSES) == ['background', *CLASSES]
    assert len(SEMANTIC_PALETTE) == len(SEMANTIC_CLASSES) == len(set(SEMANTIC_PALETTE))
    assert SEMANTIC_PALETTE[1:] == PALETTE


@pytest.mark.parametrize('split', ['train', 'val'])
def test_pycocotools_agrees_with_the_semantic_maps(small, split):
    coco_api = pytest.importorskip('pycocotools.coco')
    mask_utils = pytest.importorskip('pycocotools.mask')
    coco = coco_api.COCO(str(small / 'annotations' / f'instances_{split}.json'))
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert coco.getCatIds() == [1, 2, 3, 4, 5]
    assert min(coco.getAnnIds()) == 1
    H, W = SMALL['size']
    for image in coco.loadImgs(coco.getImgIds()):
        assert (image['height'], image['width']) == (H, W)
        semantic = read_png(small / 'semantic' / split / image['file_name'])
        expected = np.ones((H, W), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            assert annotation['iscrowd'] == 0
            rle = mask_utils.frPyObjects(annotation['segmentation'], H, W)
            mask = mask_utils.decode(rle).astype(bool)
            assert (expected[mask] == 1).all(), 'two instances share a pixel'
            expected[mask] = annotation['category_id'] + 1
            assert annotation['area'] == mask.sum() == mask_utils.area(rle)
            assert annotation['bbox'] == mask_utils.toBbox(rle).tolist()  # tight
            x, y, w, h = annotation['bbox']
            assert x >= 0
            assert y >= 0
            assert x + w <= W
            assert y + h <= H
        np.testing.assert_array_equal(semantic, expected)


def test_every_class_occurs_and_no_picture_twice(tmp_path):
    root = make_shapes(tmp_path / 'set', size=32, num_train=40, num_val=20)
    for split in ('train', 'val'):
        coco = json.loads((root / 'annotations' / f'instances_{split}.json').read_text())
        assert {annotation['category_id'] for annotation in coco['annotations']} == {1, 2, 3, 4, 5}
        assert {annotation['image_id'] for annotation in coco['annotations']} == set(range(len(coco['images'])))
    pictures = [data for name, data in read_tree(root).items() if name.endswith('.png') and 'semantic' not in name]
    assert len(pictures) == len(set(pictures)) == 40 + 20 + 40 + 20


def test_same_bytes_again_and_other_bytes_with_another_seed(small, tmp_path):
    first = read_tree(small)
    assert read_tree(make_shapes(tmp_path / 'again', **SMALL)) == first
    other = read_tree(make_shapes(tmp_path / 'other', **{**SMALL, 'seed': 6}))
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first if name.endswith('.png') and 'semantic' not in name)


def test_a_larger_set_starts_with_the_smaller_one(small, tmp_path):
    first = read_tree(small)
    larger = read_tree(make_shapes(tmp_path / 'larger', **{**SMALL, 'num_train': 11}))
    assert all(larger[name] == data for name, data in first.items() if name.endswith('.png'))


def test_progress_counts_every_picture(tmp_path, capsys):
    calls = []
    make_shapes(tmp_path / 'set', **SMALL, progress=lambda done, total: calls.append((done, total)))
    total = 6 + 3 + 5 * 2 + 5 * 1
    assert calls == [(i + 1, total) for i in range(total)]
    assert capsys.readouterr() == ('', '')


def test_default_dir():
    assert default_shapes_dir() == Path('data/shapes/128x128-train400-val80-seed0')
    assert default_shapes_dir((48, 64), 6, 3, 5, 'x') == Path('x/48x64-train6-val3-seed5')


# ------------------------------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt(), RuntimeError('bug')])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, error):
    written = []

    def write(path, data):
        written.append(path)
        if len(written) == 8:
            raise error
        path.write_bytes(data)

    monkeypatch.setattr(files, '_write', write)
    with pytest.raises(type(error)) as caught:
        make_shapes(tmp_path / 'set', **SMALL)
    assert caught.value is error
    assert len(written) == 8
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def write_bytes(path, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(Path, 'write_bytes', write_bytes)
    with pytest.raises(OSError, match=r'No space left on device: .*train/000000\.png'):
        make_shapes(tmp_path / 'set', **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_raises_oserror(tmp_path):
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(OSError, match='file'):
        make_shapes(tmp_path / 'file' / 'set', **SMALL)
    assert (tmp_path / 'file').read_text() == 'mine'


def test_an_equal_set_is_left_alone(tmp_path):
    make_shapes(tmp_path / 'set', **SMALL)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')}
    calls = []
    assert make_shapes(str(tmp_path / 'set'), **SMALL, progress=lambda *call: calls.append(call)) == tmp_path / 'set'
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*')} == before


def test_an_empty_folder_is_filled_also_through_a_link(small, tmp_path):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    make_shapes(tmp_path / 'link', **SMALL)
    assert (tmp_path / 'link').is_symlink()
    assert read_tree(tmp_path / 'real') == read_tree(small)


def test_other_contents_are_refused_and_kept(small, tmp_path):
    before = read_tree(small)
    with pytest.raises(ValueError, match=r'another Shapes data set \(seed is 5 there, 9 asked for\)') as caught:
        make_shapes(small, **{**SMALL, 'seed': 9})
    assert str(small) in str(caught.value)
    with pytest.raises(ValueError, match=r'size is \[48, 64\] there, \[64, 64\] asked for; num_val is 3 there, 4'):
        make_shapes(small, **{**SMALL, 'size': 64, 'num_val': 4})
    assert read_tree(small) == before

    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos' / 'cat.png').write_bytes(b'mine')
    with pytest.raises(ValueError, match=r'photos.*holds files that are no Shapes data set'):
        make_shapes(tmp_path / 'photos', **SMALL)
    (tmp_path / 'photos' / 'shapes.json').write_text('[1, 2')
    with pytest.raises(ValueError, match=r'photos.*holds files that are no Shapes data set'):
        make_shapes(tmp_path / 'photos', **SMALL)
    with pytest.raises(ValueError, match=r'cat\.png.*is a file'):
        make_shapes(tmp_path / 'photos' / 'cat.png', **SMALL)
    assert read_tree(tmp_path) == {'photos/cat.png': b'mine', 'photos/shapes.json': b'[1, 2'}


def test_a_damaged_set_is_reported(tmp_path):
    root = make_shapes(tmp_path / 'set', **SMALL)
    (root / 'annotations' / 'instances_val.json').unlink()
    with pytest.raises(ValueError, match=r"damaged.*without 'annotations/instances_val\.json'"):
        make_shapes(root, **SMALL)


def test_leftovers_of_killed_runs(small, tmp_path):
    old, new = tmp_path / '.set.building-0', tmp_path / '.set.building-1'
    for folder in (old, new):
        folder.mkdir()
        (folder / 'half').write_text('half')
    long_ago = time.time() - 2 * files.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    make_shapes(tmp_path / 'set', **SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.set.building-1', 'set']


@pytest.mark.slow
def test_two_processes_make_one_set(small, tmp_path):
    code = (
        'import sys, time\n'
        'from mmext_backbones.datasets import shapes\n'
        # each waits after its first picture until the other draws too: neither finds a finished set at the start
        'import pathlib\n'
        'out, me, other = (pathlib.Path(arg) for arg in sys.argv[1:])\n'
        'def progress(done, total):\n'
        '    me.touch()\n'
        '    end = time.time() + 30\n'
        '    while not other.exists() and time.time() < end:\n'
        '        time.sleep(0.005)\n'
        'shapes.make_shapes(out, size=(48, 64), num_train=6, num_val=3, seed=5, progress=progress)\n'
        'print(other.exists())\n'
    )
    flags = [tmp_path / 'flag0', tmp_path / 'flag1']
    (tmp_path / 'data').mkdir()
    command = [sys.executable, '-c', code, tmp_path / 'data' / 'set']
    both = [
        subprocess.Popen([*command, me, other], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for me, other in (flags, flags[::-1])
    ]
    results = [(*process.communicate(timeout=60), process.returncode) for process in both]
    assert results == [('True\n', '', 0)] * 2
    assert [path.name for path in (tmp_path / 'data').iterdir()] == ['set']
    assert read_tree(tmp_path / 'data' / 'set') == read_tree(small)


def test_a_lost_race_against_other_parameters_is_refused(tmp_path):
    """Somebody else's set appears while ours is drawn: it stays, and ours is not left lying about."""

    def progress(done, total):
        if done == total:
            make_shapes(tmp_path / 'set', **{**SMALL, 'seed': 9})

    with pytest.raises(ValueError, match='seed is 9 there, 5 asked for'):
        make_shapes(tmp_path / 'set', **SMALL, progress=progress)
    assert [path.name for path in tmp_path.iterdir()] == ['set']


# --------------------------------------------------------------------------------------------------------- the tool


def test_tool_draws_counts_and_previews(tool, small, tmp_path, capsys):
    out, preview = tmp_path / 'set', tmp_path / 'new' / 'sheet.png'
    arguments = ['--size', '48', '64', '--train', '6', '--val', '3', '--seed', '5', '--out', str(out)]
    assert tool.main([*arguments, '--preview', str(preview)]) == 0
    stdout, stderr = capsys.readouterr()
    assert stderr == ''
    assert '24 pictures drawn in ' in stdout
    coco = json.loads((out / 'annotations' / 'instances_train.json').read_text())
    assert f'train: 6 scenes, {len(coco["annotations"])} objects' in stdout
    assert all(name in stdout for name in CLASSES)
    assert read_tree(out) == read_tree(small)
    sheet = read_png(preview)
    # six scenes of 270 x 360 in two rows of four, 14 px between them
    assert sheet.shape == (2 * 270 + 3 * 14, 4 * 360 + 5 * 14, 3)
    assert all((sheet[..., ::-1] == color).all(axis=2).any() for color in PALETTE)

    assert tool.main(arguments) == 0
    assert 'already there: ' in capsys.readouterr().out


def test_tool_default_folder(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tool.main(['--size', '32', '--train', '1', '--val', '1']) == 0
    assert (tmp_path / 'data/shapes/32x32-train1-val1-seed0/shapes.json').is_file()
    assert 'data/shapes/32x32-train1-val1-seed0' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--size', '12'], 'size=12: expected an integer or (H, W), each at least 32'),
        (['--size', '64', '12'], 'size=(64, 12): expected'),
        (['--size', '64', '64', '64'], '--size takes one number or two (H W), got 3'),
        (['--size', 'big'], 'invalid int value'),
        (['--train', '0'], 'num_train=0: expected an integer of at least 1'),
        (['--seed', '-1'], 'seed=-1: expected an integer from 0 to 2**32 - 1'),
        (['--preview', 'sheet.jpg'], '--preview must name a .png file'),
        (['--out', 'mine'], 'holds files that are no Shapes data set'),
        (['--out', 'mine/file/set'], 'mine/file'),
        (['--bogus'], 'unrecognized arguments: --bogus'),
    ],
)
def test_tool_says_what_is_wrong_in_one_line(tool, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'file').write_text('mine')
    try:
        code = tool.main(arguments)
    except SystemExit as leaving:  # argparse leaves by itself
        code = leaving.code
    stdout, stderr = capsys.readouterr()
    assert code == 2
    assert stdout == ''
    assert stderr.startswith('make_shapes.py: error: ')
    assert words in stderr
    assert stderr.count('\n') == 1
    assert read_tree(tmp_path) == {'mine/file': b'mine'}
