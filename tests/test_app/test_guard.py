"""What the page refuses: foreign host names and origins, requests without bound, uploads as models, odd pictures."""

import asyncio
import http.client
import json
import socket
import uuid

import pytest
from PIL import Image

from mmext_backbones.app import guard as guarding
from mmext_backbones.app.guard import Guard
from mmext_backbones.app.serving import serve

from .fakes import FakePredictor, make_run

HOME = '127.0.0.1:7860'


async def answer(scope, receive, send):
    """A server that reads the whole request."""
    while scope['type'] == 'http' and (await receive()).get('more_body'):
        pass
    await send({'type': 'http.response.start', 'status': 200, 'headers': []})
    await send({'type': 'http.response.body', 'body': b'page'})


def ask(headers, *, app=answer, body=(b'',), kind='http', path='/', loopback=True, names=(), origins=(), uploads=None):
    """The status of the answer to one request; for a socket what it was told."""
    sent, chunks = [], list(body)

    async def receive():
        return {'type': 'http.request', 'body': chunks.pop(0), 'more_body': bool(chunks)}

    async def send(message):
        sent.append(message)

    door = Guard(app, names=names, origins=origins, loopback=loopback, uploads=uploads)
    pairs = [(name.lower().encode(), value.encode('latin-1')) for name, value in headers]
    asyncio.run(door({'type': kind, 'path': path, 'headers': pairs}, receive, send))
    return sent[0].get('status', sent[0]['type'])


@pytest.mark.parametrize('host', [HOME, 'localhost:7860', 'localhost', 'LOCALHOST.:1', '127.3.2.1', '[::1]:7860'])
def test_the_names_of_this_machine_are_served(host):
    assert ask([('Host', host)]) == 200


FOREIGN = [
    'evil.example:7860',
    'evil.example',
    'localhost.evil.example',
    '127.0.0.1.evil.example',
    'localhost@evil.example',
    'evil.example#localhost',
    'evil.example/localhost',
    '127.0.0.1:80:evil.example',
    '2130706433',
    '0x7f000001',
    '127.1',
    '192.0.2.7',  # a page of this machine only
    '[evil',
    '',
]


@pytest.mark.parametrize('host', FOREIGN)
@pytest.mark.parametrize('kind', ['http', 'websocket'])
def test_foreign_names_are_not(host, kind):
    assert ask([('Host', host)], kind=kind) == (421 if kind == 'http' else 'websocket.close')


def test_a_request_has_one_host():
    assert ask([]) == 421
    assert ask([('Host', HOME), ('Host', 'evil.example')]) == 421


def test_a_page_of_the_network_is_served_by_address_and_by_its_names():
    assert ask([('Host', '192.0.2.7:7860')], loopback=False) == 200
    assert ask([('Host', '[2001:db8::1]:7860')], loopback=False) == 200
    assert ask([('Host', 'evil.example')], loopback=False) == 421
    assert ask([('Host', 'box.example:7860')], loopback=False, names={'box.example'}) == 200
    assert ask([('Host', 'proxy.example')], origins={'proxy.example'}) == 200


@pytest.mark.parametrize(
    ('origin', 'status'),
    [
        (f'http://{HOME}', 200),
        ('http://evil.example', 403),
        ('http://127.0.0.1:8888', 403),  # another server of this machine
        ('http://localhost:7860', 403),
        ('null', 403),
        ('', 403),
        ('https://proxy.example', 200),
        ('http://[', 403),
    ],
)
def test_requests_from_other_sites_are_refused(origin, status):
    assert ask([('Host', HOME), ('Origin', origin)], origins={'proxy.example'}) == status


def test_bodies_are_bounded(monkeypatch):
    monkeypatch.setattr(guarding, 'MOST_BYTES', 100)
    host = ('Host', HOME)
    assert ask([host, ('Content-Length', '100')], body=[bytes(60), bytes(40)]) == 200
    assert ask([host, ('Content-Length', '101')], body=[]) == 413  # before anything is read
    assert ask([host, ('Content-Length', '9' * 30)], body=[]) == 413
    assert ask([host], body=[bytes(60), bytes(41), b'never read']) == 413
    assert ask([host, ('Content-Length', '5')], body=[bytes(60), bytes(41)]) == 413  # not as long as it says


def test_uploads_are_bounded_in_all(monkeypatch, tmp_path):
    monkeypatch.setattr(guarding, 'ROOM', 100)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'picture.png').write_bytes(bytes(60))
    (tmp_path / 'b').symlink_to('absent')
    assert ask([('Host', HOME)], path='/gradio_api/upload', uploads=tmp_path) == 200
    (tmp_path / 'more.png').write_bytes(bytes(60))
    assert ask([('Host', HOME)], path='/gradio_api/upload/', uploads=tmp_path) == 507
    assert ask([('Host', HOME)], path='/config', uploads=tmp_path) == 200


# --------------------------------------------------------------------------------------------------------------------
# The page itself


class Client:
    """Requests to a page, as a script of anybody's sends them."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read().decode()
        except ConnectionError:
            return 413, ''
        finally:
            connection.close()

    def upload(self, name, data, headers=None):
        head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
        body = head.encode() + data + b'\r\n--b--\r\n'
        kind = {'Content-Type': 'multipart/form-data; boundary=b'}
        return self.ask('POST', '/gradio_api/upload', body, kind | (headers or {}))

    def call(self, page, name, data):
        """What an event answers."""
        event = next(each['id'] for each in page.config['dependencies'] if each['api_name'] == name)
        session = uuid.uuid4().hex
        call = {'data': data, 'fn_index': event, 'session_hash': session}
        self.ask('POST', '/gradio_api/queue/join', json.dumps(call), {'Content-Type': 'application/json'})
        return self.ask('GET', f'/gradio_api/queue/data?session_hash={session}')[1]


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    pytest.importorskip('gradio', reason='gradio is not installed')
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    root = tmp_path_factory.mktemp('runs')
    make_run(root, 'first')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakePredictor, 'pause', 0.0)
        with serve(work_dirs=root, port=port, load=FakePredictor) as (_, page):
            yield Client(port), page


ROUTES = ['/', '/config', '/gradio_api/info', '/gradio_api/startup-events', '/gradio_api/queue/data?session_hash=x']


def test_no_route_serves_a_foreign_name(page):
    client, _ = page
    assert client.ask('GET', '/config')[0] == 200
    for path in [*ROUTES, '/gradio_api/file=/etc/hostname', '/no/such/route']:
        assert client.ask('GET', path, None, {'Host': f'evil.example:{client.port}'})[0] == 421, path
        assert client.ask('GET', path, None, {'Origin': 'http://evil.example'})[0] == 403, path
    assert client.upload('a.png', b'', {'Host': 'evil.example'})[0] == 421


def test_no_file_that_a_request_names_is_served_or_run(page, tmp_path):
    client, served = page
    mark = tmp_path / 'RUN'
    status, answer = client.upload('evil.py', f'open({str(mark)!r}, "w")\n'.encode())
    assert status == 200
    uploaded = json.loads(answer)[0]
    (tmp_path / 'evil.py').write_text(f'open({str(mark)!r}, "w")\n')
    for path in (uploaded, str(tmp_path / 'evil.py')):
        assert 'start the page with --typed-paths' in client.call(served, 'add_model', [path, path, None])
        assert client.ask('GET', f'/gradio_api/file={path}')[0] == (200 if path == uploaded else 403)
    assert not mark.exists()


def test_pictures_are_uploaded_and_nothing_else(page, tmp_path):
    client, served = page
    names = [each['api_name'] for each in served.config['dependencies']]
    look = next(name for name in names if name.startswith('look') and 'second' not in name)

    def said(path):
        picture = {'path': path, 'meta': {'_type': 'gradio.FileData'}}
        return client.call(served, look, [picture, 'first (iter_2)', None, 0.3, False])

    Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
    uploaded = json.loads(client.upload('a.png', (tmp_path / 'a.png').read_bytes())[1])[0]
    assert '"success":true' in said(uploaded)
    for path in (str(tmp_path / 'a.png'), 'http://127.0.0.1:1/a.png', 'https://example.org/a.png'):
        assert '"success":false' in said(path)


def test_an_upload_without_bound_is_refused(page):
    client, _ = page
    assert client.upload('big.png', bytes(guarding.MOST_BYTES + 1))[0] == 413


def test_a_password_is_asked_for(tmp_path):
    pytest.importorskip('gradio', reason='gradio is not installed')
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        port = listener.getsockname()[1]
    with serve(work_dirs=tmp_path, port=port, load=FakePredictor, password='secret'):
        client = Client(port)
        assert client.ask('GET', '/config')[0] == 401
        assert client.upload('a.png', b'')[0] == 401
        form = {'Content-Type': 'application/x-www-form-urlencoded'}
        assert client.ask('POST', '/login', 'username=me&password=wrong', form)[0] == 400
        assert client.ask('POST', '/login', 'username=me&password=secret', form)[0] == 200


def test_pictures_that_are_handed_to_programs_are_not_opened(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin

    from mmext_backbones.app.pictures import read_picture
    from mmext_backbones.utils.errors import UserError

    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', lambda *_, **__: pytest.fail('a program was called'))
    Image.new('RGB', (8, 8)).save(tmp_path / 'a.eps')
    (tmp_path / 'a.png').write_bytes((tmp_path / 'a.eps').read_bytes())
    for name in ('a.eps', 'a.png'):
        with pytest.raises(UserError, match='of no kind that is known'):
            read_picture(tmp_path / name)


def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    from mmext_backbones.app import pictures
    from mmext_backbones.utils.errors import UserError

    monkeypatch.setattr(pictures, 'MOST_PIXELS', 5000)
    for suffix in ('png', 'webp', 'tiff', 'gif'):
        Image.new('RGB', (100, 51)).save(tmp_path / f'a.{suffix}')
    with monkeypatch.context() as patch:
        patch.setattr('PIL.ImageFile.ImageFile.load', lambda *_: pytest.fail('decoded'))
        for suffix in ('png', 'webp', 'tiff', 'gif'):
            with pytest.raises(UserError, match='too many pixels'):
                pictures.read_picture(tmp_path / f'a.{suffix}')
    Image.new('RGB', (4000, 100)).save(tmp_path / 'a.jpg')  # decoded smaller
    monkeypatch.setattr(pictures, 'MOST_PIXELS', 150_000)
    monkeypatch.setattr(pictures, 'LONGEST', 50)
    assert pictures.read_picture(tmp_path / 'a.jpg').shape[1] == 50
