"""Mistakes at the command that swaps: one message that names the place, exit code 2, and no file touched."""

import inspect
import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.utils import package_utils

from mmext_backbones.backbones import SwinTransformer
from mmext_backbones.config.files import load_config
from mmext_backbones.swap import __main__ as command
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.errors import UserError

TINY = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(3,)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=512),
)
data_preprocessor = dict(mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False)
"""
READ_BASE = 'from mmengine.config import read_base\nwith read_base():\n'
FASTER = 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'

# name: the files (the first is the one asked for) and what the message has to say
CONFIGS = {
    'syntax': ({'mine.py': 'a = 1\nmodel = dict(\n'}, r"config 'mine.py' cannot be read: line 2: SyntaxError: '\('"),
    'syntax of a base': (
        {'mine.py': "_base_ = 'parts/base.py'", 'parts/base.py': 'a = 1\n\nfoo bar'},
        r"config 'mine.py' cannot be read: parts/base.py, line 3: SyntaxError: invalid syntax",
    ),
    'undefined variable': ({'mine.py': 'a = 1\n\nb = dict(c=lr)'}, "line 3: NameError: name 'lr' is not defined"),
    'undefined variable of a base': (
        {'mine.py': "_base_ = ['base.py']", 'base.py': '\nb = lr'},
        "base.py, line 2: NameError: name 'lr' is not defined",
    ),
    'undefined variable of a Python-style base': (
        {'mine.py': READ_BASE + '    from .base import *', 'base.py': '\nb = lr'},
        "base.py, line 2: NameError: name 'lr' is not defined",
    ),
    'missing base': (
        {'mine.py': "\n_base_ = ['gone.py']"},
        r"config 'mine.py' cannot be read: line 2: its base gone.py is not there\.$",
    ),
    'misspelt base of a base': (
        {'mine.py': "_base_ = 'base.py'", 'base.py': "\n\n_base_ = './parts/nots.py'", 'parts/notes.py': ''},
        r"base.py, line 3: its base parts/nots.py is not there. Did you mean 'notes.py'\?",
    ),
    'missing Python-style base': (
        {'mine.py': READ_BASE + '    from .parts.nots import *', 'parts/notes.py': ''},
        r"line 3: its base parts/nots.py is not there. Did you mean 'notes.py'\?",
    ),
    'unknown base of a library': (
        {'mine.py': f"a = 1\n_base_ = 'mmdet::{FASTER.replace('rcnn/', 'rcn/')}'"},
        rf"line 2: its base 'mmdet::.*': mmdet has no config .* Did you mean 'mmdet::{FASTER}'",
    ),
    'unknown library of a base': (
        {'mine.py': f"_base_ = 'mmdt::{FASTER}'"},
        r"line 1: its base 'mmdt::.*': mmengine knows no library 'mmdt'. Did you mean 'mmdet'\?",
    ),
    'tuple of bases': (
        {'mine.py': "_base_ = ('base.py',)", 'base.py': TINY},
        r"line 1: _base_ is \('base.py',\): expected a text or a list of texts",
    ),
    'bases that meet': (
        {'mine.py': "_base_ = ['base.py', 'parts/base.py']", 'base.py': 'a = 1', 'parts/base.py': 'a = 2'},
        "Duplicate key is not allowed among bases. Duplicate keys: {'a'}",
    ),
    'no such variable of the base': (
        {'mine.py': "_base_ = 'base.py'\na = _base_.lr", 'base.py': TINY},
        "line 2: AttributeError: 'ConfigDict' object has no attribute 'lr'",
    ),
    'a dict on what is none': (
        {'mine.py': "_base_ = 'base.py'\na = dict(b=1)", 'base.py': 'a = 1'},
        'TypeError: a=.* cannot inherit from base',
    ),
    'environment': ({'mine.py': "a = '{{$PARITY_NOWHERE:}}'"}, '`PARITY_NOWHERE` cannot be found in `os.environ`'),
    'reserved name': ({'mine.py': "filename = 'a'"}, 'filename is reserved for config file'),
    'custom imports': (
        {'mine.py': "custom_imports = dict(imports=['os', 'parity_gone.heads'], allow_failed_imports=False)"},
        r"custom_imports name 'parity_gone.heads', which cannot be imported: ModuleNotFoundError: "
        r"No module named 'parity_gone'. Has PYTHONPATH",
    ),
    'an import of a custom import': (
        {'mine.py': "custom_imports = dict(imports=['parity_one'])", 'parity_one.py': 'import parity_gone'},
        r"custom_imports name 'parity_one', .*: No module named 'parity_gone'\.$",
    ),
    'a name that a custom import lacks': (
        {'mine.py': "custom_imports = dict(imports=['parity_four'])", 'parity_four.py': 'from os import parity'},
        r"custom_imports name 'parity_four', .*cannot import name 'parity' from 'os' \(.*\)\.$",
    ),
    'an error of a custom import': (
        {'mine.py': "custom_imports = dict(imports=['parity_two'])", 'parity_two.py': 'a = 1\nb = 1 / 0'},
        "config 'mine.py' cannot be read: parity_two.py, line 2: ZeroDivisionError",
    ),
    'syntax of a custom import': (
        {'mine.py': "custom_imports = dict(imports=['parity_three'])", 'parity_three.py': 'a = 1\nfoo bar'},
        'parity_three.py, line 2: SyntaxError: invalid syntax',
    ),
    'an import of a Python-style config': (
        {'mine.py': 'from mmpretrain.models import Nothing\nmodel = dict(type=Nothing)'},
        'Failed to import Nothing from mmpretrain.models in .*mine.py, line 1',
    ),
    'no config': ({'notes.txt': TINY}, r"config 'notes.txt' is no config: expected a file that ends in \.py"),
    'letters of another code': ({'mine.py': b'\xff\xfe'}, "config 'mine.py' cannot be read: UnicodeDecodeError"),
    'JSON': ({'mine.json': '{"a": 1,\n "b": }'}, "config 'mine.json' cannot be read: JSONDecodeError.*line 2"),
    'YAML': ({'mine.yaml': 'a: {1\nb: 2'}, "config 'mine.yaml' cannot be read: .*line 2"),
    'no model': ({'mine.py': 'a = 1'}, 'mine.py: the config has no model: is it a part that other configs inherit'),
    'an optimizer wrapper that is none': (
        {'mine.py': TINY + 'optim_wrapper = True'}, 'optim_wrapper=True: expected a dict'
    ),
    'unknown backbone in the config': (
        {'mine.py': TINY.replace("'ResNet'", "'ResNot'")},
        'mine.py takes no swin_t: its backbone ResNot cannot be built to see its maps: .*ResNot is not in',
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder(monkeypatch, tmp_path, one_block_a_stage, maps_found_once):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(command, 'FORWARD_SIZE', 64)


def refused(capsys, *args: str) -> str:
    """The message of a command that must end in one, with every file as it was."""
    before = {path: path.read_bytes() for path in Path().rglob('*.*') if path.is_file() and path.suffix != '.pyc'}
    code = run_cli(command.main, list(args))
    message = capsys.readouterr().err.strip()
    assert code == 2, message
    assert message.startswith('Error: ')
    assert 'Traceback' not in message
    after = {path: path.read_bytes() for path in Path().rglob('*.*') if path.is_file() and path.suffix != '.pyc'}
    assert after == before
    return message


def one_paragraph(message: str) -> bool:
    return '\n' not in message and len(message) < 900


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_that_cannot_be_read(capsys, name):
    files, expected = CONFIGS[name]
    for file, text in files.items():
        Path(file).parent.mkdir(exist_ok=True)
        Path(file).write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused(capsys, next(iter(files)), '--backbone', 'swin_t')
    assert one_paragraph(message)
    with pytest.raises(UserError, match=expected):  # the place of a match in a text of one line
        raise UserError(message)


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        ('gone.py', "config 'gone.py': there is no such file"),
        ('parts', "config 'parts' is a folder: name a file in it"),
        ('mmdet::faster-rcnn_r50_fpn_1x_coco.py', f"Did you mean 'mmdet::{FASTER}' or 'mmdet::"),
        ('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco', f"Did you mean 'mmdet::{FASTER}'"),
        (f'mmdt::{FASTER}', "mmengine knows no library 'mmdt'. Did you mean 'mmdet'?"),
        (f'mmdet::{FASTER}::x.py', 'mmdet has no config'),
        ('mmext_backbones::swin_t_maskrcn_1x.py', "Did you mean 'mmext_backbones::swin_t_maskrcnn_1x.py'"),
    ],
)
def test_names_of_configs_that_do_not_exist(capsys, config, expected):
    Path('parts').mkdir()
    message = refused(capsys, config, '--backbone', 'swin_t', '-o', 'new.py')
    assert expected in message
    assert one_paragraph(message)


def test_a_library_that_is_not_installed_is_not_fetched(capsys, monkeypatch):
    """mmengine would call pip."""
    monkeypatch.setattr('mmengine.utils.package_utils.call_command', lambda *args: pytest.fail('a command was run'))
    assert 'mmpose is not installed' in refused(capsys, 'mmpose::a/b.py', '--backbone', 'swin_t')


@pytest.mark.skipif('pkg_resources' not in inspect.getsource(package_utils), reason='this mmengine does without')
@pytest.mark.parametrize('config', [f'mmdet::{FASTER}', 'mine.py'])
def test_without_pkg_resources_the_remedy_is_named(capsys, monkeypatch, config):
    Path('mine.py').write_text(f"_base_ = 'mmdet::{FASTER}'")
    monkeypatch.setitem(sys.modules, 'pkg_resources', None)
    assert 'pip install "setuptools<82"' in refused(capsys, config, '--backbone', 'swin_t')


def test_traceback_on_request(capsys):
    Path('mine.py').write_text('a = lr')
    assert run_cli(command.main, ['mine.py', '--backbone', 'swin_t', '--traceback']) == 2
    message = capsys.readouterr().err
    assert "NameError: name 'lr' is not defined\n\nThe above exception was the direct cause" in message


def test_places_are_told_in_code_too():
    Path('mine.py').write_text('\na = lr')
    with pytest.raises(UserError, match='line 2: NameError') as raised:
        load_config(str(Path('mine.py').resolve()))
    assert isinstance(raised.value.__cause__, NameError)


# --------------------------------------------------------------------------------------------------------------------
# The other arguments


def test_unknown_backbone(capsys):
    Path('mine.py').write_text(TINY)
    message = refused(capsys, 'mine.py', '--backbone', 'swin_tiny')
    assert "unknown backbone 'swin_tiny'. Did you mean 'swin_t'? Known: " in message
    for name in ('swin_l', 'elsa_swin_b', 'maxvit_xl', 'sequencer_m'):
        assert name in message


@pytest.mark.parametrize(
    ('out', 'expected'),
    [
        ('there.py', 'there.py exists already: name another file with -o, or overwrite it with --force.'),
        ('mine.py', 'mine.py is the config itself'),
        ('folder.py', 'folder.py is a folder: name a file in it'),
        ('new.txt', 'new.txt is no name of a config: it has to end in .py'),
        ('there.py/new.py', 'there.py is no folder that you may write to'),
        ('there.py/sub/new.py', 'there.py is no folder that you may write to'),
    ],
)
def test_outputs_that_cannot_be_written(capsys, out, expected):
    Path('mine.py').write_text(TINY)
    Path('there.py').write_text('precious')
    Path('folder.py').mkdir()
    message = refused(capsys, 'mine.py', '--backbone', 'swin_t', '-o', out)
    assert expected in message
    assert one_paragraph(message)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='nothing is closed to root')
def test_a_folder_that_may_not_be_written_to(capsys):
    Path('mine.py').write_text(TINY)
    Path('closed').mkdir(mode=0o500)
    assert 'you may write to' in refused(capsys, 'mine.py', '--backbone', 'swin_t', '-o', 'closed/new.py')


def test_a_disk_that_refuses(capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    Path('mine.py').write_text(TINY)
    monkeypatch.setattr('tempfile.NamedTemporaryFile', full)
    monkeypatch.setattr(command, 'load_config', lambda config: _config())
    message = refused(capsys, 'mine.py', '--backbone', 'swin_t', '-o', 'new.py', '--size', '64')
    assert 'new.py cannot be written: No space left on device' in message


def _config():
    from mmengine.config import Config

    names = {}
    exec(TINY, names)
    return Config({key: value for key, value in names.items() if not key.startswith('__')})


@pytest.mark.parametrize(
    ('weights', 'expected'),
    [
        ('', "--weights '': expected a file"),
        ('parts', "--weights 'parts': expected a file"),
        ('tim://swin_tiny.in1k', 'no such scheme as tim://. Known: hf://, http://'),
        ('timm://swin_tiny', 'expected timm://<model>.<tag>'),
        ('hf://owner/file.pth', 'expected hf://<owner>/<repository>/<file>'),
        ('https://host', 'expected https://<host>/<file>'),
        ('broken.pth', 'broken.pth cannot be read'),
        ('other.pth', 'other.pth holds no weights of a SwinTransformer'),
        ('small.pth', 'SwinTransformer: the weights do not fit'),
    ],
)
def test_weights_that_are_none(capsys, weights, expected):
    Path('mine.py').write_text(TINY)
    Path('parts').mkdir()
    Path('broken.pth').write_bytes(b'PK no weights')
    torch.save({'state_dict': {'conv1.weight': torch.zeros(2, 2)}}, 'other.pth')
    thin = SwinTransformer({'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)})
    torch.save(thin.state_dict(), 'small.pth')
    message = refused(capsys, 'mine.py', '--backbone', 'swin_t', '--weights', weights, '-o', 'new.py')
    assert expected in message


def test_weights_that_fit_or_are_elsewhere(capsys, recwarn):
    Path('mine.py').write_text(TINY)
    torch.save(SwinTransformer('tiny').state_dict(), 'right.pth')
    for weights, note in (
        ('right.pth', ''),
        ('later.pth', 'there is no file later.pth here'),
        ('https://host/swin.pth', 'https://host/swin.pth is fetched when a training starts'),
    ):
        command.main(['mine.py', '--backbone', 'swin_t', '--weights', weights, '--check', '--size', '64'])
        printed = capsys.readouterr().out
        notes = [line for line in printed.splitlines() if line.startswith('note: ')]
        assert [line for line in notes if note in line] if note else not notes, printed
    assert not [warning for warning in recwarn if 'meta' in str(warning.message)]
