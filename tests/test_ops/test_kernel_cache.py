"""The cache of compiled kernels: whose libraries are loaded, damaged ones, and compilers that behave oddly."""

import ctypes
import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from mmext_backbones.ops import kernel_cache
from mmext_backbones.ops.c_kernels import Kernels

pytestmark = pytest.mark.skipif(shutil.which('cc') is None, reason='no C compiler')

SOURCE = 'void answer(void *shape, REAL *out) { *out = 42; }\n'
OTHER = 'void answer(void *shape, REAL *out) { *out = 7; }\n'
VERSION = '[ "$1" = --version ] && { echo cc; exit 0; }'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; nothing was told or has hung before."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.delenv('CC', raising=False)
    monkeypatch.setattr(kernel_cache, '_told', set())
    monkeypatch.setattr(kernel_cache, '_hanging', set())
    kernel_cache._version.cache_clear()
    yield tmp_path / 'cache' / 'mmext_backbones'
    kernel_cache._version.cache_clear()


def use(tmp_path: Path, text: str = SOURCE) -> float | str:
    """What the kernel answers, or why it cannot be used."""
    source = tmp_path / 'toy' / 'cpu.c'
    source.parent.mkdir(exist_ok=True)
    source.write_text(text)
    try:
        library = kernel_cache.open_library(source, 'double', ['answer'])
    except (OSError, RuntimeError) as error:
        return str(error)
    out = ctypes.c_double()
    library.answer(None, ctypes.byref(out))
    return out.value


def compiler(tmp_path: Path, monkeypatch, text: str) -> None:
    path = tmp_path / 'mycc'
    path.write_text(f'#!/bin/sh\n{VERSION}\n{text}\n')
    path.chmod(0o755)
    monkeypatch.setenv('CC', str(path))


def libraries(cache: Path) -> list[Path]:
    return sorted(cache.glob('*.so'))


def test_compiled_once_and_private_whatever_the_umask(cache, tmp_path, monkeypatch):
    before = os.umask(0)
    try:
        assert use(tmp_path) == 42
    finally:
        os.umask(before)
    [path] = libraries(cache)
    assert [cache.stat().st_mode & 0o777, cache.parent.stat().st_mode & 0o777] == [0o700, 0o700]
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(cache.iterdir()) == [path]  # nothing of the compilation stays
    monkeypatch.setattr(kernel_cache, '_compiled', lambda *_: pytest.fail('compiled again'))
    assert use(tmp_path) == 42


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.unlink()  # this process has the old one open
    changed = {'cut': content[:-500], 'empty': b'', 'zeros': content[:600] + bytes(600) + content[1200:]}
    path.write_bytes(changed.get(how, content))
    if how == 'writable':
        path.chmod(0o666)
    elif how == 'a link':
        path.rename(path.parent.parent / 'elsewhere.so')
        path.symlink_to(path.parent.parent / 'elsewhere.so')
    elif how == 'a hard link':
        os.link(path, path.parent.parent / 'elsewhere.so')


@pytest.mark.parametrize('how', ['cut', 'empty', 'zeros', 'writable', 'a link', 'a hard link'])
def test_a_damaged_or_foreign_library_is_made_anew(how, cache, tmp_path):
    assert use(tmp_path) == 42
    [path] = libraries(cache)
    spoil(path, how)
    assert use(tmp_path) == 42
    [path] = libraries(cache)
    assert kernel_cache._is_sound(path)


def test_another_library_in_its_place_is_not_loaded(cache, tmp_path):
    assert use(tmp_path) == 42
    [path] = libraries(cache)
    assert use(tmp_path, OTHER) == 7
    other = next(each for each in libraries(cache) if each != path)
    path.unlink()
    shutil.copy(other, path)
    assert use(tmp_path) == 42


def test_another_users_folder_is_not_used(cache, tmp_path, monkeypatch, caplog):
    assert use(tmp_path) == 42
    [path] = libraries(cache)
    me = os.geteuid()
    monkeypatch.setattr(os, 'geteuid', lambda: me + 1)
    assert not kernel_cache._is_sound(path)
    assert use(tmp_path) == 42  # in a temporary folder
    assert 'belongs to another user' in caplog.text
    assert libraries(cache) == [path]


def test_a_folder_that_all_may_exchange_is_not_used(cache, tmp_path, caplog):
    cache.mkdir(parents=True)
    cache.parent.chmod(0o777)
    assert use(tmp_path) == 42
    assert 'everybody can exchange' in caplog.text
    assert libraries(cache) == []
    cache.parent.chmod(0o1777)  # as /tmp is: only the owner renames
    cache.chmod(0o777)
    assert use(tmp_path) == 42
    assert cache.stat().st_mode & 0o777 == 0o700
    assert len(libraries(cache)) == 1


def test_a_relative_cache_counts_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', 'here')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    assert use(tmp_path) == 42
    assert not Path('here').exists()
    assert len(libraries(tmp_path / 'home' / '.cache' / 'mmext_backbones')) == 1


@pytest.mark.parametrize('home', ['a file', 'unknown', 'full'])
def test_without_a_cache_each_process_compiles_and_is_told_once(home, cache, tmp_path, monkeypatch, caplog):
    if home == 'a file':
        cache.parent.write_text('')
    elif home == 'unknown':
        monkeypatch.delenv('XDG_CACHE_HOME')
        monkeypatch.setattr(Path, 'expanduser', lambda self: (_ for _ in ()).throw(RuntimeError('no home')))
    else:
        monkeypatch.setattr(kernel_cache, '_keep', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left')))
    assert use(tmp_path) == 42
    assert use(tmp_path, OTHER) == 7
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert told[0].startswith('Kernels are compiled by each process anew, which takes some seconds: ')


@pytest.mark.parametrize('named', ['cc -pipe', "'cc' -O2", ' '])
def test_a_compiler_with_arguments(named, tmp_path, monkeypatch):
    monkeypatch.setenv('CC', named)
    assert use(tmp_path) == 42


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('printf "ung\\374ltig\\n" >&2; exit 1', 'failed: ung�ltig'),
        ('exit 1', 'failed: no message'),
        ('for a in "$@"; do [ "$p" = -o ] && : > "$a"; p=$a; done', 'no library that can be loaded'),
        ('for a in "$@"; do [ "$p" = -o ] && echo text > "$a"; p=$a; done', 'no library that can be loaded'),
        ('exit 0', 'no library that can be loaded'),
        ('exec cc "$@" -Danswer=other', "a library without answer"),
    ],
    ids=['latin', 'silent', 'empty', 'text', 'nothing', 'other'],
)  # fmt: skip
def test_what_a_broken_compiler_makes_is_not_kept(text, message, cache, tmp_path, monkeypatch):
    compiler(tmp_path, monkeypatch, text)
    assert message in use(tmp_path)
    assert libraries(cache) == []
    compiler(tmp_path, monkeypatch, 'exec cc "$@"')  # mended
    assert use(tmp_path) == 42


@pytest.mark.parametrize(
    ('named', 'message'),
    [
        ('no-such-compiler -O2', "no C compiler: 'no-such-compiler' is not on the PATH"),
        ('"cc', "no C compiler: CC='\"cc' is no command"),
    ],
)
def test_no_compiler(named, message, tmp_path, monkeypatch):
    monkeypatch.setenv('CC', named)
    assert message in use(tmp_path)


def test_a_compiler_that_hangs_is_told_of_and_ended_with_all_it_started(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(kernel_cache, 'PATIENCE', 0.2)
    monkeypatch.setattr(kernel_cache, 'LONGEST', 0.5)
    compiler(tmp_path, monkeypatch, f'sleep 100 & echo $! > {tmp_path}/child; wait')
    start = time.perf_counter()
    assert 'did not end within 0.5 s' in use(tmp_path)
    assert 'did not end before' in use(tmp_path, OTHER)  # it is not waited for again
    assert time.perf_counter() - start < 5
    assert 'Compiling the CPU kernels, once on this machine' in caplog.text
    child = int((tmp_path / 'child').read_text())
    stopped = time.time() + 5
    while Path(f'/proc/{child}/cmdline').exists() and Path(f'/proc/{child}/cmdline').read_bytes():
        assert time.time() < stopped
        time.sleep(0.01)


def test_the_reason_is_a_warning_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv('CC', 'no-such-compiler')
    monkeypatch.setattr('mmext_backbones.ops.c_kernels.KERNELS', [])
    made = [Kernels(tmp_path / name / 'cpu.c', ctypes.Structure, {}) for name in 'ab']
    for each in made:
        (tmp_path / each.name).parent.mkdir()
        (tmp_path / each.name).write_text('')
    with caplog.at_level(logging.INFO):
        assert [each.why_not() for each in made] == ["no C compiler: 'no-such-compiler' is not on the PATH"] * 2
    assert [record.levelname for record in caplog.records] == ['WARNING', 'INFO']
    assert caplog.messages[0].startswith('No C kernels: the operators run in PyTorch, slower on a CPU. a/cpu.c: no C')
