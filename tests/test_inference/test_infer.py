"""tools/infer.py from files, folders and videos to a folder of results."""

import contextlib
import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmext_backbones.inference import Predictor
from mmext_backbones.inference.command import infer
from mmext_backbones.inference.prediction import decode_mask
from mmext_backbones.inference.results import Results
from mmext_backbones.inference.sources import find_images, read_names
from mmext_backbones.inference.video import VideoFile, VideoOutput
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def listed(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture
def folder(tmp_path, pictures):
    """Two pictures that can be read, one of them in a folder of its own, and two that cannot."""
    path = tmp_path / 'photos'
    (path / 'more').mkdir(parents=True)
    (path / 'a.png').write_bytes(pictures[0].read_bytes())
    Image.open(pictures[1]).convert('RGB').save(path / 'more' / 'a.jpg', quality=95)
    (path / 'junk.png').write_text('junk')
    (path / 'cut.jpg').write_bytes((path / 'more' / 'a.jpg').read_bytes()[:900])
    (path / 'notes.txt').write_text('no picture')
    return path


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def test_a_folder_with_broken_pictures(folder, made, predictors, tmp_path, capsys):
    config, weights = made('detection')
    out = tmp_path / 'out'
    assert infer(config, weights, [str(folder)], out=str(out), device='cpu', threshold=0.1) == 1
    screen = capsys.readouterr()
    assert 'detection of 4 pictures on cpu' in screen.out
    assert '2 of 4 files could not be read' in screen.out
    assert 'junk.png' in screen.err.partition('Failed: ')[2]
    assert listed(out) == [
        'images.json', 'pictures/a.png', 'pictures/more/a.jpg', 'predictions.json', 'run.json',
    ]  # fmt: skip
    run = read(out / 'run.json')
    assert run['finished']
    assert [Path(path).name for path in run['failed']] == ['cut.jpg', 'junk.png']
    assert run['classes'] == list(predictors('detection').classes)
    drawn = np.asarray(Image.open(out / 'pictures' / 'a.png'))
    np.testing.assert_array_equal(drawn, predictors('detection')(folder / 'a.png').drawn(0.1))


def test_results_are_what_pycocotools_reads(folder, made, predictors, tmp_path):
    from pycocotools.coco import COCO

    out = tmp_path / 'out'
    assert infer(*made('detection'), [str(folder / 'a.png')], out=str(out), device='cpu', pictures=False) == 0
    assert not (out / 'pictures').exists()
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(out / 'images.json'))
        results = coco.loadRes(str(out / 'predictions.json'))
    expected = predictors('detection')(folder / 'a.png')
    entries = results.loadAnns(results.getAnnIds(imgIds=[1]))
    assert len(entries) == len(expected.scores) > 3
    for i, entry in enumerate(entries):
        assert coco.loadCats(entry['category_id'])[0]['name'] == expected.classes[expected.labels[i]]
        np.testing.assert_array_equal(results.annToMask(entry).astype(bool), expected.masks[i])
        np.testing.assert_array_equal(decode_mask(entry['segmentation']), expected.masks[i])
    assert coco.loadImgs(1)[0]['height'] == 64


def test_segments(folder, made, predictors, tmp_path):
    out = tmp_path / 'out'
    names = [str(folder / 'a.png'), str(folder / 'more' / '*.jpg')]
    assert infer(*made('segmentation'), names, out=str(out), device='cpu') == 0
    assert listed(out) == [
        'pictures/a.png', 'pictures/a_2.jpg', 'predictions.json', 'run.json', 'segments/a.png', 'segments/a_2.png',
    ]  # fmt: skip
    predictor = predictors('segmentation')
    expected = predictor(folder / 'a.png')
    with Image.open(out / 'segments' / 'a.png') as image:
        np.testing.assert_array_equal(np.asarray(image), expected.segmentation)
        colours = np.asarray(image.convert('RGB'))
    np.testing.assert_array_equal(colours, np.array(predictor.palette)[expected.segmentation])
    first, second = read(out / 'predictions.json')
    assert first['shares'] == expected.shares()
    assert second['file_name'] == str(folder / 'more' / 'a.jpg')


def test_classes(folder, made, predictors, tmp_path):
    out = tmp_path / 'out'
    assert infer(*made('classification'), [str(folder / 'a.png')], out=str(out), device='cpu') == 0
    (entry,) = read(out / 'predictions.json')
    assert entry['top'] == predictors('classification')(folder / 'a.png').to_dict()['top']
    assert len(entry['top']) == 5


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_in_batches(task, folder, made, tmp_path):
    """The same files, and the broken ones are told."""
    one, three = tmp_path / 'one', tmp_path / 'three'
    for out, batch_size in ((one, 1), (three, 3)):
        assert infer(*made(task), [str(folder)], out=str(out), device='cpu', batch_size=batch_size) == 1
    assert listed(one) == listed(three)
    assert read(one / 'run.json')['failed'] == read(three / 'run.json')['failed']
    assert [each['file_name'] for each in read(one / 'predictions.json') if task == 'segmentation'] == [
        each['file_name'] for each in read(three / 'predictions.json') if task == 'segmentation'
    ]
    with pytest.raises(UserError, match='--batch-size 0: expected 1 or more'):
        infer(*made(task), [str(folder)], out=str(tmp_path / 'x'), device='cpu', batch_size=0)


def test_names_on_the_standard_input(folder, made, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    names = [str(folder / 'a.png'), str(folder / 'more' / 'a.jpg')]
    monkeypatch.setattr('sys.stdin', io.StringIO('\n'.join(names) + '\n\n'))
    assert infer(*made('classification'), ['-'], out=str(out), device='cpu') == 0
    assert [each['file_name'] for each in read(out / 'predictions.json')] == names
    assert read_names(['x', '-', 'y'], io.StringIO('a b\0c\n\0')) == ['x', 'a b', 'c\n', 'y']
    assert read_names(['x'], io.StringIO('a')) == ['x']
    with pytest.raises(UserError, match='-: expected the names of files on the standard input'):
        read_names(['-'], io.StringIO('\n'))


def test_objects_of_some_classes_cut_out(folder, made, predictors, tmp_path):
    out = tmp_path / 'out'
    expected = predictors('detection')(folder / 'a.png')
    label = int(expected.labels[0])
    name = expected.classes[label]
    options = {'device': 'cpu', 'only': [name], 'save_crop': True, 'threshold': 0.0, 'pictures': False}
    assert infer(*made('detection'), [str(folder / 'a.png')], out=str(out), **options) == 0
    files = [name for name in listed(out) if name.startswith('crops/')]
    wanted = [crop for found, crop in expected.crops(0.0) if found == label]
    assert sorted(files) == sorted(f'crops/{name}/a_{i}.png' for i in range(1, len(wanted) + 1))
    np.testing.assert_array_equal(np.asarray(Image.open(out / 'crops' / name / 'a_1.png')), wanted[0])
    assert {entry['category_id'] for entry in read(out / 'predictions.json')} == {label + 1}
    with pytest.raises(UserError, match='has results already of a run with other only'):
        infer(*made('detection'), [str(folder / 'a.png')], out=str(out), device='cpu')
    with pytest.raises(UserError, match='--save-crop cuts out the boxes of a detector, and this model is for seg'):
        infer(*made('segmentation'), [str(folder / 'a.png')], out=str(tmp_path / 'x'), device='cpu', save_crop=True)


def test_the_tool(folder, made, predictors, tmp_path, monkeypatch, capsys):
    """Its command line, in this process; with views and other options."""
    spec = importlib.util.spec_from_file_location('infer_tool', ROOT / 'tools' / 'infer.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(tmp_path)
    config, weights = made('detection')
    options = ['--device', 'cpu', '--tta', '--cfg-options', 'model.test_cfg.rcnn.max_per_img=4']
    assert run_cli(tool.main, [config, weights, 'photos/a.png', *options]) == 0
    assert 'several views of each' in capsys.readouterr().out
    found = read(tmp_path / 'predictions' / 'detection' / 'predictions.json')
    assert found == predictors('detection', True)('photos/a.png').to_coco(1)
    assert run_cli(tool.main, [config, weights, 'photos/b.png']) == 2
    assert "there is no such file. Did you mean 'photos/a.png'?" in capsys.readouterr().err
    assert run_cli(tool.main, [config, weights, 'photos/a.png', '--threshold', '3']) == 2
    assert '--threshold 3.0' in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------------------
# What is there already


def test_results_of_another_run_stay(folder, made, tmp_path, capsys):
    config, weights = made('detection')
    out = tmp_path / 'out'

    def run(name='a.png', **more):
        return infer(config, weights, [str(folder / name)], out=str(out), device='cpu', **more)

    run()
    before = (out / 'predictions.json').read_bytes()
    for other, key in (({'tta': True}, 'tta'), ({'name': 'more'}, 'sources')):
        with pytest.raises(UserError, match=f'has results already of a run with other {key}.*--overwrite'):
            run(**other)
    assert (out / 'predictions.json').read_bytes() == before
    capsys.readouterr()
    run(threshold=0.9)  # the same run, drawn otherwise
    assert 'are replaced' in capsys.readouterr().out
    run('more', overwrite=True)
    assert listed(out) == ['images.json', 'pictures/a.jpg', 'predictions.json', 'run.json']  # a.png was the other's


def test_files_of_somebody_else_stay(folder, made, tmp_path):
    out = tmp_path / 'out'
    (out / 'pictures').mkdir(parents=True)
    (out / 'pictures' / 'a.png').write_text('mine')
    (out / 'keep.txt').write_text('mine')
    with pytest.raises(UserError, match=r'has results already, such as pictures/a.png'):
        infer(*made('detection'), [str(folder / 'a.png')], out=str(out), device='cpu')
    infer(*made('detection'), [str(folder / 'a.png')], out=str(out), device='cpu', overwrite=True)
    assert (out / 'keep.txt').read_text() == 'mine'


def test_a_picture_that_the_network_fails_on(folder, made, tmp_path, capsys, monkeypatch):
    """The others are predicted; where all fail alike, it is no matter of pictures."""
    Image.new('RGB', (50, 40)).save(folder / 'thin.png')
    out = tmp_path / 'out'
    predict = Predictor._predict

    def failing(self, batch):
        if any(Path(packed['data_samples'].img_path).name == 'thin.png' for _, packed, *_ in batch):
            raise RuntimeError('no pixel is left\nof it')
        return predict(self, batch)

    monkeypatch.setattr(Predictor, '_predict', failing)
    assert infer(*made('detection'), [str(folder)], out=str(out), device='cpu') == 1
    run = read(out / 'run.json')
    assert run['finished']
    assert run['failed'][str(folder / 'thin.png')].endswith('cannot be predicted: RuntimeError: no pixel is left')
    assert {'pictures/a.png', 'pictures/more/a.jpg'} <= set(listed(out))
    with pytest.raises(RuntimeError, match='no pixel is left'):
        infer(*made('detection'), [str(folder / 'thin.png')], out=str(tmp_path / 'other'), device='cpu')


@pytest.mark.parametrize('where', ['pictures', 'segments'])
def test_sources_are_never_replaced(where, folder, made, tmp_path):
    out = tmp_path / 'out'
    (out / where).mkdir(parents=True)
    source = out / where / 'a.png'
    source.write_bytes((folder / 'a.png').read_bytes())
    with pytest.raises(UserError, match='is read here, and would be replaced'):
        infer(*made('segmentation'), [str(source)], out=str(out), device='cpu', overwrite=True)
    assert source.read_bytes() == (folder / 'a.png').read_bytes()


@pytest.mark.parametrize('files', [5, [{'a': 1}], ['../photos/a.png', 'pictures/a.png', 'x' * 5000, 'a\0']])
def test_an_odd_record_of_an_earlier_run(files, folder, tmp_path):
    """Files outside of the folder stay, and so do the pictures of this run."""
    out = tmp_path / 'out'
    (out / 'pictures').mkdir(parents=True)
    (out / 'pictures' / 'a.png').touch()
    (out / 'run.json').write_text(json.dumps({'files': files}))
    run = {'config': 'a', 'sources': [str(out / 'pictures' / 'a.png')]}
    Results(out, run, [], overwrite=True).write(('a',), 'detection', finished=True)
    assert (folder / 'a.png').exists()
    assert (out / 'pictures' / 'a.png').exists()


def test_what_was_predicted_before_ctrl_c_is_kept(folder, made, tmp_path, monkeypatch):
    prepare, done = Predictor._prepare, []

    def interrupted(self, image):
        if done:
            raise KeyboardInterrupt
        done.append(image)
        return prepare(self, image)

    monkeypatch.setattr(Predictor, '_prepare', interrupted)
    out = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        infer(*made('detection'), [str(folder / 'a.png'), str(folder / 'more')], out=str(out), device='cpu')
    assert not read(out / 'run.json')['finished']
    assert len(read(out / 'images.json')['images']) == 1
    assert read(out / 'predictions.json')


# --------------------------------------------------------------------------------------------------------------------
# Which files


def test_sources(folder, tmp_path):
    def names(*inputs):
        return [source.name for source in find_images([str(one) for one in inputs], without=folder / 'more')]

    assert names(folder) == ['a', 'cut', 'junk']  # not what lies in the folder of results, nor the text
    assert names(folder / 'a.png', folder, folder / '*.png') == ['a', 'cut', 'junk']  # each once
    assert names(folder / 'notes.txt') == ['notes']  # a file is a file: reading it will tell
    (folder / 'A.bmp').write_text('')
    assert names(folder / 'a.png', folder / 'A.bmp') == ['a', 'A_2']
    odd = folder / 'odd[1].png'
    odd.write_text('')
    assert names(odd) == ['odd[1]']
    (tmp_path / 'none').mkdir()
    (folder / 'v.mp4').write_text('')
    for inputs, message in (
        ([tmp_path / 'none'], 'has no pictures'),
        ([folder / '*.tif'], r"\*.tif': there is no such file"),
        ([folder / 'b.png'], "Did you mean .*a.png'"),
        ([folder / 'v.mp4'], 'is a video: add --video'),
    ):
        with pytest.raises(UserError, match=message):
            names(*inputs)


# --------------------------------------------------------------------------------------------------------------------
# Videos


@pytest.fixture
def video(tmp_path, pictures):
    """Three frames of 64 x 64, five a second."""
    output = VideoOutput(tmp_path / 'clip.mp4', 5.0)
    for path in pictures:
        output.add(np.asarray(Image.open(path).convert('RGB')))
    output.finish()
    return tmp_path / 'clip.mp4'


@pytest.mark.parametrize('task', ['detection', 'segmentation'])
def test_a_video(task, video, made, predictors, tmp_path, capsys):
    out = tmp_path / 'out'
    assert infer(*made(task), [str(video)], out=str(out), video=True, device='cpu', threshold=0.1) == 0
    assert f'{task} of 1 video on cpu' in capsys.readouterr().out
    frames = list(VideoFile(video))
    drawn = VideoFile(out / 'videos' / 'clip.mp4')
    assert drawn.fps == 5
    shown = list(drawn)
    assert len(shown) == len(frames) == 3
    predictions = [predictors(task)(frame) for frame in frames]
    for got, prediction in zip(shown, predictions, strict=True):
        expected = prediction.drawn(0.1)
        got_height, got_width = got.shape[:2]
        assert (got_height, got_width) == tuple(edge - edge % 2 for edge in expected.shape[:2])
        # as far as MPEG-4 keeps it
        assert np.abs(got.astype(int) - expected[:got_height, :got_width]).mean() < 12
    entries = read(out / 'predictions.json')
    if task == 'detection':
        assert entries == [entry for i, one in enumerate(predictions, 1) for entry in one.to_coco(i)]
        assert [image['file_name'] for image in read(out / 'images.json')['images']] == [
            f'{video}#{i}' for i in (1, 2, 3)
        ]
    else:
        assert [entry['shares'] for entry in entries] == [one.shares() for one in predictions]
    assert listed(out)[-1] == 'videos/clip.mp4'


def test_videos_that_cannot_be_read(video, made, tmp_path, capsys):
    (tmp_path / 'junk.mp4').write_text('junk')
    (tmp_path / 'empty.mp4').touch()
    names = [str(tmp_path / name) for name in ('junk.mp4', 'empty.mp4', 'clip.mp4')]
    out = tmp_path / 'out'
    assert infer(*made('detection'), names, out=str(out), video=True, device='cpu') == 1
    assert [Path(name).name for name in read(out / 'run.json')['failed']] == ['junk.mp4', 'empty.mp4']
    assert '2 of 3 files could not be read' in capsys.readouterr().out
    assert [path.name for path in (out / 'videos').iterdir()] == ['clip.mp4']
    with pytest.raises(UserError, match='there is no such file'):
        infer(*made('detection'), ['no.mp4'], out=str(out), video=True)


def test_an_interrupted_video_leaves_no_half_file(video, made, tmp_path, monkeypatch):
    prepare, done = Predictor._prepare, []

    def interrupted(self, image):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return prepare(self, image)

    monkeypatch.setattr(Predictor, '_prepare', interrupted)
    out = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        infer(*made('detection'), [str(video)], out=str(out), video=True, device='cpu')
    assert listed(out) == ['images.json', 'predictions.json', 'run.json']
    assert len(read(out / 'images.json')['images']) == 2


def test_a_video_that_lacks_frames_is_told(tmp_path, monkeypatch):
    """OpenCV says nothing where the disk is full."""
    output = VideoOutput(tmp_path / 'clip.mp4', 5.0)
    for _ in range(3):
        output.add(np.zeros((65, 33, 3), np.uint8))
    output.count = 4
    with pytest.raises(RuntimeError, match='3 of 4 frames could be written'):
        output.finish()
    assert not list(tmp_path.iterdir())


def test_odd_edges_and_colours_of_a_video(tmp_path):
    frame = np.full((65, 33, 3), (200, 30, 60), np.uint8)
    output = VideoOutput(tmp_path / 'clip.mp4', 5.0)
    output.add(frame)
    output.finish()
    (got,) = VideoFile(tmp_path / 'clip.mp4')
    assert got.shape == (64, 32, 3)
    assert np.abs(got.astype(int) - (200, 30, 60)).max() < 12
