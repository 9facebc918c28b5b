"""Files that are read and written around a run, and what may fail in it."""

import logging
import os
import shlex

import pytest
from mmengine.logging import MMLogger

from mmext_backbones.config.options import option_words
from mmext_backbones.utils.attempts import MayFail
from mmext_backbones.utils.cli import command_line
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.files import keep_inputs, move_into_place, read_path, unique_names, write_whole


def test_inputs_are_kept_under_any_name(tmp_path):
    photo = tmp_path / 'a.png'
    photo.touch()
    os.symlink(photo, tmp_path / 'link.png')
    os.link(photo, tmp_path / 'twin.png')
    (tmp_path / 'other.png').touch()
    for target in (photo, tmp_path / 'link.png', tmp_path / 'twin.png', tmp_path / '..' / tmp_path.name / 'a.png'):
        with pytest.raises(UserError, match=r'--out x: .*\.png.* would be replaced'):
            keep_inputs('--out x', [tmp_path / 'new.png', target], ['https://host/a', str(photo)])
    keep_inputs('--out x', [tmp_path / 'new.png', tmp_path / 'other.png'], [photo, tmp_path / 'new.png'])


def test_names_are_told_apart():
    taken = {'c'}
    assert unique_names(['a', 'A', 'b/a', 'a', 'a_2', 'c'], taken) == ['a', 'A_2', 'b/a', 'a_3', 'a_2_2', 'c_2']
    assert unique_names(['a'], taken) == ['a_4']


@pytest.mark.parametrize(
    ('content', 'path'),
    [
        (b'work/iter_3.pth\n', 'work/iter_3.pth'),
        (b'', ''),
        (b'a\0b', ''),
        (b'one\ntwo', ''),
        (b'x' * 10**6, ''),
        ('wörk'.encode(), 'wörk'),
        (b'w\xff', os.fsdecode(b'w\xff')),
    ],
    ids=range(7),
)
def test_a_path_in_a_file(content, path, tmp_path):
    (tmp_path / 'note').write_bytes(content)
    assert read_path(tmp_path / 'note') == path
    assert read_path(tmp_path / 'nothing') == read_path(tmp_path) == ''
    if path:
        write_whole(tmp_path / 'again', path)
        assert read_path(tmp_path / 'again') == path


def test_a_file_never_replaces_a_folder(tmp_path):
    (tmp_path / 'kept').mkdir()
    (tmp_path / 'kept' / 'file').touch()
    with pytest.raises(OSError, match='kept'):
        write_whole(tmp_path / 'kept', 'text')
    assert (tmp_path / 'kept' / 'file').exists()
    (tmp_path / 'new').mkdir()
    move_into_place(tmp_path / 'new', tmp_path / 'kept')
    assert not list((tmp_path / 'kept').iterdir())


def test_what_may_fail_is_told_once():
    logger = MMLogger.get_instance('may_fail')
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    may_fail = MayFail('pictures')
    for number in range(3):
        with may_fail:
            raise KeyError(f'no. {number}\nmore')
    told = [line for line in lines if 'left out' in line]
    assert told == ["pictures: left out, and the run goes on (KeyError: 'no. 0\\nmore')."]
    for end in (KeyboardInterrupt, SystemExit):
        with pytest.raises(end), may_fail:
            raise end


def test_commands_can_be_typed():
    options = {'model.a': 'x y', 'list': [1, 2]}
    command = command_line('tools/train.py', 'my config.py', '--seed', 0, None, '', *option_words(options))
    assert command == "python tools/train.py 'my config.py' --seed 0 --cfg-options 'model.a=x y' 'list=[1, 2]'"
    assert shlex.split(command)[2] == 'my config.py'
    assert option_words({}) == option_words(None) == []
