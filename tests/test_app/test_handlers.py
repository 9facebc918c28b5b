"""What the page does, without the page."""

import contextlib
import gc
import os
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmext_backbones.app import serving
from mmext_backbones.app.captions import Found, found_text
from mmext_backbones.app.finding import Model, find_runs, models_of
from mmext_backbones.app.handlers import Handlers
from mmext_backbones.app.models import LoadedModels
from mmext_backbones.app.pictures import LONGEST, draw_examples, read_picture
from mmext_backbones.inference import Prediction
from mmext_backbones.utils.errors import UserError

from .fakes import FakePredictor, make_run


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(FakePredictor, 'pause', 0.0)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'picture.png'
    Image.new('RGB', (60, 40), 'white').save(path)
    return str(path)


# --------------------------------------------------------------------------------------------------------------------
# Models that are found or named


def test_runs_are_found_newest_first(tmp_path):
    for age, name in enumerate(('new', 'old', 'group/older')):
        weights = make_run(tmp_path, name)
        os.utime(weights, (1000 - age, 1000 - age))
    (tmp_path / 'no_checkpoint').mkdir()
    (tmp_path / 'no_checkpoint' / 'config.py').write_text('')
    (tmp_path / 'no_config').mkdir()
    (tmp_path / 'no_config' / 'best_mAP.pth').write_bytes(b'')
    assert [model.name for model in find_runs(tmp_path)] == ['new (iter_2)', 'old (iter_2)', 'group/older (iter_2)']
    assert find_runs(tmp_path / 'absent') == []


def test_the_best_checkpoint_counts_then_the_last(tmp_path):
    last = make_run(tmp_path, 'run')
    (last.parent / 'iter_1.pth').write_bytes(b'')
    assert [model.weights for model in find_runs(tmp_path)] == [str(last)]
    best = last.with_name('best_coco_segm_mAP_iter_1.pth')
    best.write_bytes(b'')
    assert [model.weights for model in find_runs(tmp_path)] == [str(best)]


def test_a_run_that_was_moved_is_found(tmp_path):
    last = make_run(tmp_path, 'before')
    last.parent.rename(tmp_path / 'after')
    assert [model.weights for model in find_runs(tmp_path)] == [str(tmp_path / 'after' / last.name)]


def test_a_run_that_was_copied_without_its_notes(tmp_path):
    """Any checkpoint counts: of several the one of most iterations, and what training wrote before others."""
    make_run(tmp_path, 'run').unlink()  # last_checkpoint names a file that is gone
    run = tmp_path / 'run'
    assert find_runs(tmp_path) == []
    (run / 'mine.pth').touch()
    assert [model.name for model in find_runs(tmp_path)] == ['run (mine)']
    for number in (97, 100, 9):
        (run / f'iter_{number}.pth').touch()
    assert [model.name for model in find_runs(tmp_path)] == ['run (iter_100)']
    (run / 'last_checkpoint').unlink()
    assert [model.name for model in find_runs(tmp_path)] == ['run (iter_100)']


@pytest.mark.parametrize(
    ('paths', 'message'),
    [
        (['config.py'], "pairs CONFIG WEIGHTS, got 1 paths: 'config.py' has no partner"),
        (['config.py', 'absent.pth'], r"'absent.pth': there is no such file"),
        (['config.py', '.'], "'.' is a folder"),
        (['config.py', 'https://example.org/a.pth'], 'only a file on the machine of this page'),
        (['absent.py', 'weights.pth'], "config 'absent.py': there is no such file"),
        (['wrong.py', 'weights.pth'], "config 'wrong.py' cannot be read: line 1"),
        (['config.py', ' '], 'the path of the weights is missing'),
    ],
)
def test_paths_that_name_no_model(paths, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in {'config.py': 'a = 1', 'wrong.py': 'a = 1 / 0', 'weights.pth': ''}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        models_of(paths)


def test_models_of_equal_names_are_told_apart(tmp_path):
    paths = []
    for folder in 'abc':
        (tmp_path / folder).mkdir()
        for name in ('config.py', 'last.pth'):
            (tmp_path / folder / name).write_text('')
            paths.append(str(tmp_path / folder / name))
    assert [model.name for model in models_of(paths)] == ['config (last)', 'config (last) #2', 'config (last) #3']


# --------------------------------------------------------------------------------------------------------------------
# Models in memory


def test_no_more_models_than_allowed_are_ever_in_memory():
    alive, most = weakref.WeakSet(), []

    class Network:
        def __init__(self, config, weights, tta):
            self.me = self  # as modules and their hooks do
            alive.add(self)
            gc.collect() if len(alive) > 2 else None
            most.append(len(alive))

        def __call__(self, image):
            return image

    models = LoadedModels(Network, keep=2)
    for number in (1, 2, 3, 1, 2, 4, 4, 5):
        models.predict(Model(str(number), f'{number}.py', f'{number}.pth'), 0)
    assert len(models) == 2
    assert max(most) == 2
    assert len(most) == 7  # the second 4 was there


def test_the_least_recently_used_model_goes():
    loaded = []
    models = LoadedModels(lambda config, *_: loaded.append(config) or (lambda image: image), keep=2)
    for name in 'abaca':
        models.predict(Model(name, name, name), 0)
    assert loaded == ['a', 'b', 'c']


def test_weights_that_were_written_anew_are_loaded_anew(tmp_path):
    weights = make_run(tmp_path, 'run')
    [model] = find_runs(tmp_path)
    models = LoadedModels(FakePredictor, keep=2)
    image = np.zeros((8, 8, 3), np.uint8)
    assert models.predict(model, image)[1] is not None
    assert models.predict(model, image)[1] is None
    assert models.predict(model, image, tta=True)[1] is not None
    os.utime(weights, (5, 5))
    assert models.predict(model, image)[1] is not None


# --------------------------------------------------------------------------------------------------------------------
# Pictures


def test_pictures_are_read_as_they_are_meant(tmp_path):
    half = np.zeros((30, 50, 3), np.uint8)
    half[:, :25] = 255  # the left half is white
    path = tmp_path / 'turned.png'
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by a quarter, clockwise
    Image.fromarray(half).save(path, exif=exif)
    assert np.array_equal(read_picture(path), np.rot90(half, -1))

    alpha = np.dstack([np.zeros_like(half), np.zeros((30, 50), np.uint8)])
    Image.fromarray(alpha, 'RGBA').save(path)
    assert read_picture(path).min() == 255  # nothing on white

    Image.fromarray(np.full((4, 4), 0x8040, np.uint16)).save(path)
    assert np.array_equal(read_picture(path), np.full((4, 4, 3), 0x80))

    Image.new('RGB', (2 * LONGEST, LONGEST)).save(path)
    assert read_picture(path).shape == (LONGEST // 2, LONGEST, 3)


@pytest.mark.parametrize('damage', ['text', 'cut', 'empty', 'huge'])
def test_what_is_no_picture_is_told(damage, tmp_path):
    path = tmp_path / 'picture.png'
    Image.effect_noise((64, 64), 50).save(path)
    if damage == 'huge':
        Image.new('1', (20000, 20000)).save(path)
    else:
        path.write_bytes({'text': b'hello', 'empty': b'', 'cut': path.read_bytes()[:1000]}[damage])
    with pytest.raises(UserError, match='too many pixels' if damage == 'huge' else 'the picture cannot be read'):
        read_picture(path)


def test_examples_differ_and_can_be_read(tmp_path):
    pictures = [read_picture(path) for path in draw_examples(tmp_path, 3)]
    assert len({picture.tobytes() for picture in pictures}) == 3
    assert all(picture.std() > 5 for picture in pictures)


# --------------------------------------------------------------------------------------------------------------------
# Answers


@pytest.fixture
def handlers(tmp_path):
    for name in ('good', 'broken'):
        make_run(tmp_path / 'runs', name)
    models = LoadedModels(FakePredictor, keep=2)
    return Handlers(lambda: find_runs(tmp_path / 'runs'), models, typed=True, uploads=str(tmp_path / 'uploads'))


def test_a_picture_is_looked_at_and_drawn_again(handlers, picture):
    told = []
    panel = handlers.look(picture, 'good (iter_2)', {}, 0.3, False, lambda share, what: told.append((share, what)))
    assert told == [(0.1, 'loading good (iter_2)'), (0.6, 'predicting')]
    assert panel.image.shape[1] / panel.image.shape[0] == 60 / 40
    assert not np.array_equal(panel.image, panel.found.prediction.drawn(0.3))  # its letters are larger
    assert '<b>2 objects</b>: 1 circle, 1 square' in panel.text
    assert 'of loading' in panel.text
    assert '<b>0 ms</b> for this picture' in panel.text
    stricter = handlers.drawn(panel.found, 0.7)
    assert '<b>1 object</b>: 1 circle' in stricter.text
    assert not np.array_equal(stricter.image, panel.image)
    assert 'of loading' not in handlers.look(picture, 'good (iter_2)', {}, 0.3, False).text


@pytest.mark.parametrize(
    ('name', 'message'),
    [(None, 'Choose a model first'), ('gone', 'gone is no longer there'), ('broken (iter_2)', 'do not fit')],
)
def test_mistakes_are_messages(name, message, handlers, picture):
    panel = handlers.look(picture, name, {}, 0.3, False)
    assert message in panel.text
    assert panel.image is None
    assert panel.found is None


def test_without_a_picture_one_is_asked_for(handlers):
    assert 'Choose a picture first' in handlers.look(None, 'good (iter_2)', {}, 0.3, False).text


def test_a_bug_is_told_in_a_line_and_logged_with_its_traceback(handlers, picture, monkeypatch):
    def fails(self, image):
        raise ZeroDivisionError('<script>')

    logged = []
    monkeypatch.setattr('mmext_backbones.app.handlers.print_log', lambda text, *_: logged.append(text))
    monkeypatch.setattr(FakePredictor, '__call__', fails)
    text = handlers.look(picture, 'good (iter_2)', {}, 0.3, False).text
    assert 'ZeroDivisionError: &lt;script&gt;' in text
    assert 'Traceback' not in text
    assert 'in fails' in logged[0]


def test_a_model_is_added_by_its_paths(handlers, tmp_path):
    (tmp_path / 'mine.py').write_text('a = 1')
    (tmp_path / 'mine.pth').write_bytes(b'')
    added, name, text = handlers.add(str(tmp_path / 'mine.py'), str(tmp_path / 'mine.pth'), {})
    assert name == 'mine (mine)'
    assert handlers.choices(added)[0] == name
    assert 'failure' not in text
    again, name, text = handlers.add(str(tmp_path / 'mine.py'), 'absent.pth', added)
    assert (again, name) == (added, None)
    assert 'absent.pth&#x27;: there is no such file' in text


def test_models_are_added_only_where_that_was_asked_for_and_never_from_uploads(handlers, tmp_path):
    uploads = tmp_path / 'uploads'
    uploads.mkdir()
    (tmp_path / 'link').symlink_to(uploads)
    for folder in (uploads, tmp_path):
        (folder / 'mine.py').write_text('raise SystemExit')
        (folder / 'mine.pth').write_bytes(b'')
    for config in (uploads / 'mine.py', tmp_path / 'link' / 'mine.py', uploads / '..' / 'uploads' / 'mine.py'):
        assert 'a file that was uploaded is no model' in handlers.add(f' {config}', str(tmp_path / 'mine.pth'), {})[2]
    off = Handlers(list, LoadedModels(FakePredictor, keep=2))
    assert '--typed-paths' in off.add(str(tmp_path / 'mine.py'), str(tmp_path / 'mine.pth'), {})[2]


def test_names_in_a_result_are_no_html():
    prediction = FakePredictor('', '')(np.zeros((10, 10, 3), np.uint8))
    text = found_text(Found('<i>name', prediction, None, False), 0.0)
    assert '&lt;i&gt;name' in text
    assert '&lt;b&gt;bold' in text


def test_segments_are_told_in_shares():
    labels = np.array([[0, 0, 0, 1], [2, 2, 2, 2]])
    prediction = Prediction('segmentation', (2, 4), ('sky', 'sea', 'land'), segmentation=labels, seconds=2.0)
    text = found_text(Found('name', prediction, None, True), 0.3)
    assert 'land 50.0%, sky 37.5%, sea 12.5% of the picture' in text
    assert '2.0 s</b> for this picture with test-time augmentation' in text


# --------------------------------------------------------------------------------------------------------------------
# Serving


def test_without_gradio_the_command_that_helps_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(UserError, match='pip install "gradio>=6"'), serving.serve():
        pass
    monkeypatch.setitem(sys.modules, 'gradio', SimpleNamespace(__version__='5.49.1'))
    with pytest.raises(UserError, match=r'5\.49\.1 is installed'), serving.serve():
        pass


@pytest.mark.parametrize(
    ('args', 'typed', 'told'),
    [
        ([], False, 'It answers every account of this machine. --login asks for a password.'),
        (['--host', 'localhost'], False, 'every account of this machine. '),
        (['--host', '0.0.0.0'], False, 'everybody who reaches 0.0.0.0. '),
        (['--share'], False, 'everybody who has the link. '),
        (['--typed-paths'], True, 'every account of this machine, and can run programs as you (--typed-paths). '),
        (['--login'], False, "every account of this machine and has the password. Log in as 'me' with "),
    ],
)
def test_paths_can_be_typed_where_that_was_asked_for(args, typed, told, monkeypatch, capsys):
    """A config is a program: who can name one can run one."""
    asked = {}

    @contextlib.contextmanager
    def serve(paths, **options):
        asked.update(options)
        yield 'http://127.0.0.1:7860', SimpleNamespace(share_url=None)

    monkeypatch.setattr(serving, 'serve', serve)
    monkeypatch.setattr(serving.signal, 'signal', lambda *_: None)
    monkeypatch.setattr(serving.threading, 'Event', lambda: SimpleNamespace(wait=lambda: None))
    serving.main([*args, '--allow-host', 'proxy.example'])
    assert asked['typed'] is typed
    assert asked['share'] is ('--share' in args)
    assert asked['host'] == (args[1] if '--host' in args else '127.0.0.1')
    assert asked['allow_hosts'] == ['proxy.example']
    assert told in capsys.readouterr().out
    assert (asked['password'] is not None) is ('--login' in args)
