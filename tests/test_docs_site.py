"""The documentation site: built strictly and without a network, whole, and with nothing that a browser would fetch."""

import os
import posixpath
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
PAGES = sorted([*ROOT.glob('*.md'), *DOCS.rglob('*.md')])
# what a browser fetches by itself: element -> attribute
FETCHED = {
    'script': 'src',
    'img': 'src',
    'iframe': 'src',
    'source': 'src',
    'video': 'src',
    'embed': 'src',
    'object': 'data',
}
FETCHED_LINKS = {'stylesheet', 'preload', 'preconnect', 'dns-prefetch', 'modulepreload', 'icon', 'shortcut', 'manifest'}
BUILD = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError('the build wants the network')
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from mkdocs.__main__ import cli
cli(['build', '--strict', '--quiet', '--site-dir', sys.argv[1]])
"""


class Reader(HTMLParser):
    """What a page links to, what it makes a browser fetch, its anchors, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links, self.fetched, self.anchors, self.text = set(), set(), set(), []
        self.silent = 0
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.silent += tag in ('script', 'style')
        self.anchors |= {values[name] for name in ('id', 'name') if values.get(name)}
        if tag == 'a' and values.get('href'):
            self.links.add(values['href'])
        if values.get(FETCHED.get(tag)):
            self.fetched.add(values[FETCHED[tag]])
        if tag == 'link' and FETCHED_LINKS & set(values.get('rel', '').split()):
            self.fetched.add(values['href'])
        if values.get('srcset'):
            self.fetched |= {part.split()[0] for part in values['srcset'].split(',')}
        self.fetched |= set(re.findall(r'url\(["\']?(.*?)["\']?\)', values.get('style') or ''))

    def handle_endtag(self, tag):
        self.silent -= tag in ('script', 'style')

    def handle_data(self, data):
        if self.silent <= 0:
            self.text.append(data)


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """The folder of the built site, and its pages read."""
    for name in ('mkdocs', 'material', 'mkdocstrings_handlers.python'):
        pytest.importorskip(name, reason=f'{name} is not installed (requirements/extras.txt)')
    folder = tmp_path_factory.mktemp('site')
    environment = {**os.environ, 'NO_MKDOCS_2_WARNING': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
    done = subprocess.run(
        [sys.executable, '-c', BUILD, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'WARNING' not in done.stdout + done.stderr
    return folder, {path: Reader(path.read_text()) for path in folder.rglob('*.html')}


def test_every_page_is_there(site):
    folder, pages = site
    expected = {path.relative_to(DOCS).with_suffix('.html') for path in DOCS.rglob('*.md')}
    expected |= {Path('changelog.html'), Path('contributing.html'), Path('source/configs/swin_t_maskrcnn_1x.py.html')}
    assert expected <= {path.relative_to(folder) for path in pages}
    assert not list(folder.rglob('*.jsonl')) + list(folder.rglob('hooks.py'))


def test_a_browser_fetches_nothing_from_elsewhere(site):
    folder, pages = site
    assert len({url for page in pages.values() for url in page.fetched}) > 5
    for path, page in pages.items():
        for url in page.fetched:
            parts = urlsplit(url)
            assert (parts.scheme, parts.netloc) in (('', ''), ('data', '')), (path, url)
            assert not parts.path or within(folder, path, parts.path).is_file(), (path, url)
    for sheet in folder.rglob('*.css'):
        text = re.sub(r'/\*.*?\*/', '', sheet.read_text(), flags=re.DOTALL)
        assert not re.findall(r'(?:url\(\s*["\']?|@import\s*["\'])(?:https?:)?//[^)"\']*', text), sheet
    assert not re.findall(r'(?:https?:)?//[^\s"\']+\.(?:js|css|woff2?)', (folder / 'index.html').read_text())


@pytest.mark.slow  # in a browser
def test_pages_on_a_disk_can_be_searched(site):
    """Opened as files, without a server, as `make docs` leaves them."""
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if chromium is None:
        pytest.skip('no chromium, chromium-browser or google-chrome on PATH')
    folder, _ = site
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        page = browser.new_page(viewport={'width': 1400, 'height': 900})
        asked = []
        page.on('request', lambda request: asked.append(request.url))
        page.goto((folder / 'weights.html').as_uri())
        page.locator('input[data-md-component=search-query]').press_sequentially('frozen_stages')
        first = page.locator('.md-search-result__link').first
        first.wait_for(timeout=20_000)
        assert 'frozen_stages' in page.locator('.md-search-result__list').inner_text()
        assert first.get_attribute('href').startswith('file://')
        browser.close()
    assert {url.partition(':')[0] for url in asked} <= {'file', 'data', 'about', 'blob'}


def test_links_between_pages_lead_somewhere(site):
    folder, pages = site
    followed = 0
    for path, page in pages.items():
        if path.name == '404.html':  # its links start at the root of a server
            continue
        for url in page.links:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ('https', 'http', 'mailto'), (path, url)
                continue
            target = within(folder, path, parts.path) if parts.path else path
            assert target.is_file(), (path, url)
            followed += 1
            if parts.fragment and target in pages and not parts.fragment.startswith('__'):
                assert unquote(parts.fragment) in pages[target].anchors, (path, url)
    assert followed > 1000


def within(folder: Path, page: Path, path: str) -> Path:
    target = folder if path.startswith('/') else page.parent
    return Path(posixpath.normpath(target / unquote(path).lstrip('/')))


def test_the_reference_has_what_it_names(site):
    folder, pages = site
    for path in (DOCS / 'api').glob('*.md'):
        page = pages[folder / 'api' / f'{path.stem}.html']
        text = path.read_text()
        for name in re.findall(r'^::: (\S+)$(?!\n    options:\n      show_root_heading: false)', text, re.MULTILINE):
            assert name in page.anchors, name
        for module, members in re.findall(r'^::: (\S+)\n(?:    .*\n)*?      members: \[(.*)\]', text, re.MULTILINE):
            assert {f'{module}.{member}' for member in members.split(', ')} <= page.anchors
    reference = ' '.join(pages[folder / 'api' / 'ops.html'].text)
    assert 'formula above' in reference
    assert 'sum_j (M[c, j] * A[b, g(c), j, y, x]' in reference


def test_no_docstring_is_read_as_something_else():
    """As a reader of Google's style takes it: types that are words, and names with commas, are mistakes."""
    griffe = pytest.importorskip('griffe', reason='griffe is not installed (requirements/extras.txt)')
    package = griffe.load('mmext_backbones', search_paths=[ROOT], resolve_aliases=True)
    names = [
        name for path in (DOCS / 'api').glob('*.md') for name in re.findall(r'^::: (\S+)$', path.read_text(), re.M)
    ]
    mistakes, seen = [], 0
    for thing in [thing for name in names for thing in described(package[name.partition('.')[2]])]:
        for section in thing.docstring.parse('google', returns_multiple_items=False, warnings=False):
            kind = section.kind.value
            seen += 1
            if kind in ('returns', 'yields') and thing.is_function:
                odd = [item.annotation for item in section.value if str(item.annotation) != str(thing.returns)]
            elif kind == 'raises':
                odd = [item.annotation for item in section.value if not re.fullmatch(r'[\w.]+', str(item.annotation))]
            elif kind in ('parameters', 'attributes'):
                odd = [item.name for item in section.value if not re.fullmatch(r'\*{0,2}\w+', item.name)]
            else:
                odd = []
            mistakes += [(thing.path, kind, str(item)) for item in odd]
    assert seen > 100
    assert not mistakes


def described(thing):
    """A thing of the reference and what is public in it, where there is a docstring."""
    thing = thing.final_target if thing.is_alias else thing
    if thing.docstring:
        yield thing
    for name, member in thing.members.items():
        if not member.is_alias and not name.startswith('_'):
            yield from described(member)


# --------------------------------------------------------------------------------------------------------------------
# The texts, as a web host of repositories shows them

FENCE = re.compile(r'^ *(`{3,}).*?^ *\1', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'!?\[(?:[^\[\]]|\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)\)')


def prose(path: Path) -> str:
    """A page without what stands in code."""
    return re.sub(r'`[^`\n]*`', '', FENCE.sub('', path.read_text()))


def anchors_of(path: Path) -> set[str]:
    """Of the headings of a page, as the hosts of repositories make them."""
    found = set()
    for heading in re.findall(r'^#+ +(.*?) *$', FENCE.sub('', path.read_text()), re.MULTILINE):
        words = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading)
        slug = re.sub(r'[^\w\- ]', '', words.lower()).replace(' ', '-')
        number = sum(slug == other or re.fullmatch(rf'{re.escape(slug)}-\d+', other) is not None for other in found)
        found.add(f'{slug}-{number}' if number else slug)
    return found


@pytest.mark.parametrize('page', PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_text(page):
    for link in LINK.findall(prose(page)):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme in ('https', 'http', 'mailto'), link
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.is_relative_to(ROOT), f'{link} leads out of the repository'
        assert target.exists(), f'{link}: there is no {target}'
        # headings of the reference are made of docstrings: the site's own test follows those
        if parts.fragment and target.suffix == '.md' and target.parent.name != 'api':
            assert parts.fragment in anchors_of(target), f'{link}: no such heading'


def test_links_are_found(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('# A [b](c.md) `d`!\n[![e](f.svg)](g.svg) `[h](i)`\n```\n[j](k)\n```\n[l](m.md#n)\n')
    assert LINK.findall(prose(page)) == ['c.md', 'g.svg', 'm.md#n']
    assert anchors_of(page) == {'a-b-d'}


def test_pictures_have_words():
    for page in PAGES:
        assert not re.findall(r'!\[\s*\]', prose(page)), page
