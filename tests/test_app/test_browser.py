"""The page in a real browser: what a person sees and presses."""

import re
import shutil
import socket
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

from mmext_backbones.app.serving import serve
from mmext_backbones.utils.errors import UserError

from .fakes import FakePredictor, make_run

playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
pytest.importorskip('gradio', reason='gradio is not installed')

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no chromium, chromium-browser or google-chrome on PATH')
SECONDS = 20  # for anything the page does


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


@pytest.fixture(scope='module')
def outside():
    """Addresses of other machines that this process has connected to."""
    found = []

    class Watched(socket.socket):
        def connect(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(('127.', '::1')):
                found.append(address)
            return super().connect(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, 'socket', Watched)
        yield found


@pytest.fixture(scope='module')
def work_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp('work_dirs')
    for name in ('broken', 'second', 'first'):
        make_run(root, name)
    return root


@pytest.fixture(scope='module')
def url(work_dirs, outside):
    with serve(work_dirs=work_dirs, port=free_port(), typed=True, load=FakePredictor) as (url, _):
        yield url


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, url, outside):
    """The page, loaded; at the end: nothing in the console, no failed request, none to another machine by either."""
    context = browser.new_context(viewport={'width': 1280, 'height': 900})
    context.set_default_timeout(1000 * SECONDS)
    tab = context.new_page()
    wrong = []
    tab.on('console', lambda message: wrong.append(message.text) if message.type == 'error' else None)
    tab.on('pageerror', lambda error: wrong.append(str(error)))
    tab.on('response', lambda response: wrong.append(response.url) if response.status >= 400 else None)
    hosts = set()
    context.on('request', lambda request: hosts.add(urlparse(request.url)))
    tab.goto(url)
    tab.get_by_role('button', name='Find').wait_for()
    yield tab
    context.close()
    assert wrong == []
    assert {host.hostname for host in hosts if host.scheme not in ('data', 'blob')} == {'127.0.0.1'}
    assert outside == []


def upload(tab, path):
    tab.locator('#picture input[type=file]').set_input_files(path)
    tab.locator('#picture img').wait_for()


def find(tab):
    tab.get_by_role('button', name='Find').click()


def choose(tab, label, name):
    chooser = tab.get_by_label(label, exact=True)
    chooser.click()
    tab.locator(f'#{chooser.get_attribute("aria-controls")}').get_by_role('option', name=name).click()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'mine.png'
    Image.fromarray(np.full((60, 90, 3), 200, np.uint8)).save(path)
    return path


def test_upload_find_and_move_the_threshold(tab, picture):
    upload(tab, picture)
    choose(tab, 'Model', 'first (iter_2)')
    find(tab)
    text = tab.locator('#one_text')
    text.get_by_text('2 objects: 1 circle, 1 square').wait_for()
    assert re.search(r'Time: 300 ms for this picture .* after \d+ ms of loading', text.inner_text())
    shown = tab.locator('#one_image img')
    before = shown.get_attribute('src')
    width, height = shown.evaluate('image => [image.naturalWidth, image.naturalHeight]')
    assert width / height == 90 / 60
    tab.get_by_label('number input for Threshold').fill('0.7')
    text.get_by_text('1 object: 1 circle').wait_for()
    assert shown.get_attribute('src') != before
    assert tab.locator('#other_image').is_hidden()


@pytest.mark.slow
def test_two_models_on_an_example(tab):
    tab.locator('#examples button').first.click()
    tab.locator('#picture img').wait_for()
    tab.get_by_label('Compare with a second model').check()
    choose(tab, 'Model', 'first (iter_2)')
    choose(tab, 'Second model', 'second (iter_2)')
    tab.get_by_label('Test-time augmentation').check()
    find(tab)
    for panel, name in (('one', 'first (iter_2)'), ('other', 'second (iter_2)')):
        text = tab.locator(f'#{panel}_text')
        text.get_by_text('for this picture with test-time augmentation').wait_for()
        assert text.get_by_role('heading').inner_text() == name
        tab.locator(f'#{panel}_image img').wait_for()


def test_mistakes_are_messages(tab, tmp_path, picture):
    find(tab)
    tab.get_by_text('Choose a picture first').wait_for()

    damaged = tmp_path / 'damaged.png'
    damaged.write_bytes(picture.read_bytes()[:60])
    tab.locator('#picture input[type=file]').set_input_files(damaged)
    tab.locator('#picture img').wait_for(state='attached')
    find(tab)
    tab.get_by_role('alert').get_by_text('the picture cannot be read').wait_for()

    choose(tab, 'Model', 'broken (iter_2)')
    tab.locator('#examples button').first.click()
    find(tab)
    tab.get_by_role('alert').get_by_text('do not fit').wait_for()
    assert 'Traceback' not in tab.content()


@pytest.mark.slow
def test_a_model_is_added_by_its_paths(tab, tmp_path, picture):
    (tmp_path / 'mine.py').write_text('a = 1')
    (tmp_path / 'mine.pth').write_bytes(b'')
    tab.get_by_text('Add a model by its paths').click()
    tab.get_by_label('Config', exact=True).fill(str(tmp_path / 'mine.py'))
    tab.get_by_label('Weights', exact=True).fill(str(tmp_path / 'absent.pth'))
    tab.get_by_role('button', name='Add this model').click()
    tab.get_by_role('alert').get_by_text("absent.pth': there is no such file").wait_for()
    tab.get_by_label('Weights', exact=True).fill(str(tmp_path / 'mine.pth'))
    tab.get_by_role('button', name='Add this model').click()
    tab.get_by_text('Added and chosen: mine (mine)').wait_for()
    upload(tab, picture)
    find(tab)
    tab.locator('#one_text').get_by_role('heading', name='mine (mine)').wait_for()


@pytest.mark.slow
def test_on_a_phone_and_after_a_training(tab, work_dirs, picture):
    """Nothing is cut off, the result comes into view; what was trained meanwhile is offered to who loads the page."""
    tab.set_viewport_size({'width': 390, 'height': 844})
    assert tab.evaluate('document.documentElement.scrollWidth') <= 390
    upload(tab, picture)
    find(tab)
    tab.locator('#one_text .timing').wait_for()
    playwright.expect(tab.locator('#one_image img')).to_be_in_viewport(ratio=1)
    make_run(work_dirs, 'newest')
    url, tab = tab.url, tab.context.new_page()
    tab.goto(url)
    tab.get_by_role('button', name='Find').wait_for()
    tab.get_by_label('Model', exact=True).click()
    tab.get_by_role('option', name='newest (iter_2)').wait_for()


def test_a_taken_port_is_told(url, work_dirs):
    with pytest.raises(UserError, match='Try another --port'), serve(work_dirs=work_dirs, port=urlparse(url).port):
        pass


@pytest.mark.slow
def test_without_models_the_page_says_what_to_do(browser, tmp_path):
    with serve(work_dirs=tmp_path / 'none', port=free_port(), load=FakePredictor) as (url, _):
        tab = browser.new_page()
        tab.goto(url)
        tab.get_by_text('No trained model was found').wait_for()
        tab.get_by_text('Add a model by its paths').click()
        tab.get_by_text('start the page with --typed-paths').wait_for()
        assert tab.get_by_role('button', name='Add this model').is_disabled()
        tab.close()
