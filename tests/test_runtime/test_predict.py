"""predict.py: the model as a function of pictures, and the command, with files that are made by hand."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('onnxruntime', reason='requirements/extras.txt is not installed')

from mmext_backbones.runtime import copy_runtime, predict
from mmext_backbones.utils.errors import UserError
from tests import whole_files

RUNTIMES = ['onnxruntime', 'openvino']


@pytest.fixture(params=RUNTIMES)
def runtime(request):
    pytest.importorskip(request.param, reason='an optional runtime')
    return request.param


@pytest.fixture
def photos(tmp_path):
    """Three pictures of two sizes in two folders, two of one name."""
    rng = np.random.default_rng(0)
    names = {'a/7.png': (48, 100), 'a/deep/12.png': (48, 100), 'b/7.png': (90, 60)}
    for seed, (name, size) in enumerate(names.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 80 * (seed + 1), (*size, 3), np.uint8))
    return tmp_path


def run(*arguments: object) -> int:
    return predict.main([str(argument) for argument in arguments])


def expected_boxes(height: int, width: int) -> np.ndarray:
    return whole_files.BOXES[:3] * np.float32([width, height, width, height])


# --------------------------------------------------------------------------------------------------------------------
# In Python


def test_boxes_and_masks_at_the_size_of_the_picture(photos, runtime):
    model = predict.Model(whole_files.detector(photos / 'x.onnx'), runtime, threads=1)
    image = cv2.imread(str(photos / 'b/7.png'))
    result = model.predict(photos / 'b/7.png')
    assert (model.task, result['size'], model.fixed) == ('instance segmentation', (90, 60), None)
    np.testing.assert_allclose(result['boxes'], expected_boxes(90, 60), rtol=1e-6)
    np.testing.assert_array_equal(result['labels'], whole_files.LABELS[:3])  # without the row of padding
    light = predict.resize_picture(image, model.meta['resize']).mean() / 255
    np.testing.assert_allclose(result['scores'], whole_files.SCORES[:3] * light, rtol=1e-5)
    assert result['masks'].shape == (3, 90, 60)
    assert result['masks'][1].any()
    low = model.predict(image, least=float(result['scores'][1]))
    assert len(low['boxes']) == len(low['masks']) == 2


def test_no_masks_and_nothing_found(photos, runtime):
    model = predict.Model(whole_files.detector(photos / 'x.onnx', masks=False), runtime)
    result = model.predict(photos / 'a/7.png', least=1.0)
    assert result['boxes'].shape == (0, 4)
    assert 'masks' not in result


def test_segments_and_classes(photos, runtime):
    image = cv2.imread(str(photos / 'b/7.png'))
    model = predict.Model(whole_files.segmentor(photos / 's.onnx'), runtime)
    labels = model.predict(image)['segmentation']
    assert labels.shape == (90, 60)
    assert len(np.unique(labels)) == 3
    scores = predict.Model(whole_files.classifier(photos / 'c.onnx'), runtime).predict(image)['scores']
    np.testing.assert_allclose(scores.sum(), 1, rtol=1e-5)


def test_input_that_is_normalised_outside(photos):
    plain = predict.Model(whole_files.detector(photos / 'x.onnx'))
    raw = predict.Model(whole_files.detector(photos / 'r.onnx', input={**whole_files.COMMON['input'], 'raw': True}))
    image = cv2.imread(str(photos / 'b/7.png'))
    seen = predict.resize_picture(image, plain.meta['resize'])
    given = whole_files.COMMON['input']
    light = ((seen[..., ::-1] - np.float32(given['mean'])) / np.float32(given['std'])).mean() / 255
    np.testing.assert_allclose(raw.predict(image)['scores'], whole_files.SCORES[:3] * light, rtol=1e-5)
    assert plain._fed(seen[None].astype(np.float32)).shape == (1, 3, 96, 64)


def test_a_file_for_one_size_pads_with_the_mean_colour(photos):
    model = predict.Model(whole_files.detector(photos / 'x.onnx', size=(104, 96)))
    assert model.fixed == (104, 96)
    x = model._fed(np.zeros((2, 96, 64, 3), np.float32))
    assert x.shape == (2, 3, 104, 96)
    np.testing.assert_array_equal(x[1, :, [103, 0], [0, 95]], [[30, 20, 10]] * 2)  # BGR
    assert not x[:, :, :96, :64].any()
    assert len(model.predict(photos / 'b/7.png')['boxes']) == 3
    small = predict.Model(whole_files.detector(photos / 'y.onnx', size=(32, 32)))
    with pytest.raises(predict.PictureError, match=r'7\.png.* is for 32 x 32 alone, and this one is 96 x 64'):
        small.predict(photos / 'b/7.png')


# --------------------------------------------------------------------------------------------------------------------
# The command


def test_a_detector_draws_and_writes_what_pycocotools_reads(photos, capsys, runtime):
    pytest.importorskip('pycocotools')
    from pycocotools.coco import COCO

    model, out, results = whole_files.detector(photos / 'x.onnx'), photos / 'out', photos / 'r.json'
    assert run(model, photos / 'a', photos / 'b', '--out', out, '--json', results, '--runtime', runtime) == 0
    screen = capsys.readouterr().out
    assert f'{photos}/b/7.png: 1 cat, 1 ant' in screen
    drawn = sorted(path.relative_to(out).as_posix() for path in out.rglob('*.png'))
    assert drawn == ['pictures/7.png', 'pictures/7_2.png', 'pictures/deep/12.png']
    truth = COCO(str(photos / 'r.images.json'))
    assert [image['file_name'] for image in truth.imgs.values()] == [
        str(photos / name) for name in ('a/7.png', 'a/deep/12.png', 'b/7.png')
    ]
    loaded = truth.loadRes(str(results))
    entries = loaded.loadAnns(loaded.getAnnIds(imgIds=[3]))
    result = predict.Model(model, runtime).predict(photos / 'b/7.png')
    assert [entry['category_id'] for entry in entries] == [3, 1, 2]
    for entry, mask in zip(entries, result['masks'], strict=True):
        np.testing.assert_array_equal(loaded.annToMask(entry), mask)
    np.testing.assert_allclose(np.float32([entry['bbox'] for entry in entries])[:, :2], result['boxes'][:, :2])


def test_names_that_are_numbers_number_the_pictures(photos):
    model = whole_files.detector(photos / 'x.onnx')
    assert run(model, photos / 'a', '--out', photos / 'out', '--json', photos / 'r.json') == 0
    assert [image['id'] for image in json.loads((photos / 'r.images.json').read_text())['images']] == [7, 12]


def test_a_file_that_does_not_know_its_classes(photos, capsys):
    model = whole_files.detector(photos / 'x.onnx', classes=[], palette=[])
    assert run(model, photos / 'b', '--out', photos / 'out', '--json', photos / 'r.json') == 0
    assert '7.png: 1 class 2, 1 class 0' in capsys.readouterr().out
    assert [entry['category_id'] for entry in json.loads((photos / 'r.json').read_text())] == [3, 1, 2]


def test_classes_of_coco_have_its_numbers():
    classes = ['person', *map(str, range(78)), 'toothbrush']
    numbers = [predict.category_id(classes, label) for label in range(80)]
    assert (numbers[0], numbers[11], numbers[79], len(set(numbers))) == (1, 13, 90, 80)
    assert [predict.category_id(['a', 'b'], label) for label in (0, 1)] == [1, 2]


def test_a_batch_changes_nothing(photos):
    model = whole_files.detector(photos / 'x.onnx')
    for size in (1, 2, 8):
        out = ['--out', photos / f'out{size}', '--json', photos / f'{size}.json', '--batch-size', size]
        assert run(model, photos / 'a', photos / 'b', *out) == 0
    assert (photos / '1.json').read_text() == (photos / '2.json').read_text() == (photos / '8.json').read_text()
    for name in ('7.png', 'deep/12.png'):
        assert (photos / 'out1/pictures' / name).read_bytes() == (photos / 'out8/pictures' / name).read_bytes()


def test_a_segmentor_leaves_its_maps(photos, capsys):
    model = whole_files.segmentor(photos / 's.onnx')
    assert run(model, photos / 'b/7.png', '--out', photos / 'out', '--json', photos / 's.json') == 0
    labels = cv2.imread(str(photos / 'out/segments/7.png'), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(labels, predict.Model(model).predict(photos / 'b/7.png')['segmentation'])
    (entry,) = json.loads((photos / 's.json').read_text())
    assert sum(entry['shares'].values()) == pytest.approx(1)
    best = max(entry['shares'], key=entry['shares'].get)
    assert f'7.png: {best} {entry["shares"][best]:.1%}' in capsys.readouterr().out
    drawn = cv2.imread(str(photos / 'out/pictures/7.png'))
    assert drawn.shape == (540, 360, 3)  # enlarged, for the letters


def test_a_classifier_tells_the_best_classes(photos, capsys):
    model = whole_files.classifier(photos / 'c.onnx')
    assert run(model, photos / 'b/7.png', '--out', photos / 'out') == 0
    scores = predict.Model(model).predict(photos / 'b/7.png')['scores']
    order = np.argsort(-scores)
    told = ', '.join(f'{whole_files.CLASSES[i]} {scores[i]:.2f}' for i in order)
    assert f'7.png: {told}\n' in capsys.readouterr().out
    assert (photos / 'out/pictures/7.png').is_file()


def test_pictures_that_cannot_be_read_are_named(photos, capsys):
    whole = (photos / 'a/7.png').read_bytes()
    (photos / 'a/cut.png').write_bytes(whole[: len(whole) // 2])
    (photos / 'a/empty.jpg').write_bytes(b'')
    (photos / 'a/text.jpg').write_text('no picture')
    model = whole_files.detector(photos / 'x.onnx')
    out = ['--out', photos / 'out', '--json', photos / 'r.json', '--batch-size', 4]
    assert run(model, photos / 'a', *out) == 1
    screen = capsys.readouterr()
    told = {Path(line.split("'")[1]).name: line for line in screen.err.splitlines()}
    assert re.search('cut short', told['cut.png'])
    assert re.search('an empty file', told['empty.jpg'])
    assert re.search('damaged or no picture', told['text.jpg'])
    assert '2 of 5 pictures' in screen.out
    assert len(json.loads((photos / 'r.images.json').read_text())['images']) == 2


# --------------------------------------------------------------------------------------------------------------------
# What is refused, before anything is written


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith('Error: ')
    assert len(error.splitlines()) == 1
    return error


def test_what_is_no_whole_model(photos, capsys):
    out = ['--out', photos / 'out']
    assert 'no such file' in refused(capsys, photos / 'nothing.onnx', photos / 'a', *out)
    assert 'no ONNX file' in refused(capsys, photos / 'a/7.png', photos / 'a', *out)
    assert 'cannot be read' in refused(capsys, photos / 'a', photos / 'a', *out)
    whole = whole_files.detector(photos / 'x.onnx').read_bytes()
    other = photos / 'other.onnx'
    other.write_bytes(whole.replace(b'mmext_backbones.whole', b'mmext_backbones.wh0le'))
    assert 'not a whole model' in refused(capsys, other, photos / 'a', *out)
    other.write_bytes(whole.replace(b'{"version": 1', b'{"version": 7'))
    assert 'newer than this program' in refused(capsys, other, photos / 'a', *out)
    other.write_bytes(whole.replace(b'{"version": 1', b'["version": 1'))
    assert 'cannot be read' in refused(capsys, other, photos / 'a', *out)
    other.write_bytes(whole.replace(b'GlobalAveragePool', b'').replace(b'ReduceMean', b'ReduceMaen'))
    assert 'cannot be loaded by onnxruntime' in refused(capsys, other, photos / 'a', *out)
    assert not (photos / 'out').exists()


@pytest.mark.parametrize('share', [0.05, 0.3, 0.6, 0.97])
def test_a_file_that_was_cut(share, photos, capsys):
    whole = whole_files.detector(photos / 'x.onnx').read_bytes()
    (photos / 'x.onnx').write_bytes(whole[: int(len(whole) * share)])
    assert 'x.onnx' in refused(capsys, photos / 'x.onnx', photos / 'a', '--out', photos / 'out')


def test_options_that_cannot_be(photos, capsys, monkeypatch):
    model = whole_files.detector(photos / 'x.onnx')
    assert 'this onnxruntime has' in refused(capsys, model, photos / 'a', '--providers', 'MyProvider')
    assert '--runtime openvino' in refused(capsys, model, photos / 'a', '--device', 'CPU')
    assert '--runtime openvino' in refused(capsys, model, photos / 'a', '--precision', 'bf16')
    providers = ['--runtime', 'openvino', '--providers', 'CPUExecutionProvider']
    assert '--runtime onnxruntime' in refused(capsys, model, photos / 'a', *providers)
    assert 'from 0 to 1' in refused(capsys, model, photos / 'a', '--score-thr', 30)
    assert '--batch-size 0' in refused(capsys, model, photos / 'a', '--batch-size', 0)
    assert 'no such file or folder' in refused(capsys, model, photos / 'c')
    (photos / 'c').mkdir()
    assert 'has no pictures' in refused(capsys, model, photos / 'c')
    monkeypatch.setitem(sys.modules, 'openvino', None)
    assert 'pip install openvino' in refused(capsys, model, photos / 'a', '--runtime', 'openvino')


def test_nothing_takes_the_place_of_an_input_or_of_earlier_results(photos, capsys):
    model = whole_files.detector(photos / 'x.onnx')
    before = {path: path.read_bytes() for path in photos.rglob('*') if path.is_file()}
    out = ['--out', photos / 'out']
    for target in ('a/7.png', 'x.onnx'):
        assert 'is read here' in refused(capsys, model, photos / 'a', *out, '--json', photos / target, '--overwrite')
    (photos / 'out/pictures').mkdir(parents=True)
    shutil.copy(photos / 'a/7.png', photos / 'out/pictures/7.png')
    assert 'read here' in refused(capsys, model, photos / 'out/pictures/7.png', *out, '--overwrite')
    assert 'is there already' in refused(capsys, model, photos / 'b', *out)
    twice = ['--json', photos / 'out/pictures/7.png', '--overwrite']
    assert 'written twice' in refused(capsys, model, photos / 'b', *out, *twice)
    assert 'is a folder' in refused(capsys, model, photos / 'b', *out, '--json', photos / 'a', '--overwrite')
    assert {path: path.read_bytes() for path in before} == before
    assert run(model, photos / 'b', *out, '--overwrite') == 0
    assert (photos / 'out/pictures/7.png').read_bytes() != before[photos / 'a/7.png']


def test_a_folder_that_holds_the_results_is_read_without_them(photos):
    model = whole_files.detector(photos / 'x.onnx')
    for _ in range(2):
        results = ['--out', photos / 'a/out', '--json', photos / 'r.json', '--overwrite']
        assert run(model, photos / 'a', *results) == 0
    assert len(json.loads((photos / 'r.images.json').read_text())['images']) == 2


# --------------------------------------------------------------------------------------------------------------------
# Where nothing else is installed

PACKAGES = ('numpy', 'cv2', 'onnxruntime')
ALONE = """
import runpy, sys
sys.path.append(sys.argv[1])
sys.argv = sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name='__main__')
finally:
    for name in ('torch', 'mmengine', 'PIL', 'pycocotools', 'mmext_backbones'):
        assert name not in sys.modules, name
"""


@pytest.fixture
def alone(tmp_path):
    """A folder with three packages and the libraries that came with them, for an interpreter that sees no others."""
    folder = tmp_path / 'packages'
    folder.mkdir()
    for name in PACKAGES:
        place = Path(importlib.util.find_spec(name).origin).parent
        siblings = [place, *place.parent.glob(f'{name}.libs'), *place.parent.glob('opencv_python*.libs')]
        for each in siblings:
            if not (folder / each.name).exists():
                (folder / each.name).symlink_to(each)
    return folder


@pytest.mark.parametrize('kind', ['detector', pytest.param('segmentor', marks=pytest.mark.slow)])
def test_it_runs_where_nothing_else_is_installed(kind, photos, alone):
    model = getattr(whole_files, kind)(photos / 'x.onnx')
    script = copy_runtime(photos)
    arguments = [script, model, photos / 'a', '--out', photos / 'out', '--json', photos / 'r.json']
    command = [sys.executable, '-I', '-S', '-c', ALONE, alone, *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=photos)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '2 of 2 pictures' in done.stdout
    here = ['--out', photos / 'here', '--json', photos / 'here.json']
    assert run(model, photos / 'a', *here) == 0
    assert (photos / 'r.json').read_text() == (photos / 'here.json').read_text()


def test_without_its_packages_it_says_what_to_install(tmp_path):
    script = copy_runtime(tmp_path)
    command = [sys.executable, '-I', '-S', str(script), 'x.onnx', 'y.png']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert 'pip install numpy opencv-python-headless' in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_it_is_copied_over_itself_and_over_nothing_else(tmp_path):
    script = copy_runtime(tmp_path)
    assert script.read_text() == Path(predict.__file__).read_text()
    script.write_text(script.read_text() + '\n# changed\n')
    copy_runtime(tmp_path)
    assert '# changed' not in script.read_text()
    script.write_text('print("mine")\n')
    with pytest.raises(UserError, match='is something else'):
        copy_runtime(tmp_path)
    assert script.read_text() == 'print("mine")\n'
