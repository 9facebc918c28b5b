"""The module that stands in for `mmcv._ext`: when it is found, what it answers to, how it is installed for others."""

import ast
import importlib.util
import logging
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from mmext_backbones.mmcv_ops import extension, showing
from mmext_backbones.mmcv_ops.__main__ import main
from mmext_backbones.mmcv_ops.finder import EXTENSION, ExtensionFinder, register_finder
from mmext_backbones.mmcv_ops.missing import USERS, MissingOperatorError

ROOT = Path(__file__).parents[2]
OPERATORS = [name for names in extension.OPERATORS.values() for name in names]


def load():
    finder = ExtensionFinder()
    module = importlib.util.module_from_spec(finder.find_spec(EXTENSION))
    finder.exec_module(module)
    return module


@pytest.fixture
def python(fresh):
    """What a fresh interpreter prints, with these folders before all others."""

    def run(code, *paths, check=True):
        done = fresh().run(code, *paths)
        if check:
            assert done.returncode == 0, done.stderr
            return done.stdout
        return done

    return run


def test_it_answers_to_every_name():
    module = load()
    assert all(callable(getattr(module, name)) for name in [*OPERATORS, *USERS, 'an_operator_of_tomorrow'])
    for name in ('__file__', '__path__', '__wrapped__'):  # `inspect` asks every module for them
        assert not hasattr(module, name)
    assert module.nms is extension.operator('nms')


def test_each_file_offers_what_it_is_listed_with():
    for name, operators in extension.OPERATORS.items():
        module = importlib.import_module(f'mmext_backbones.mmcv_ops.{name}')
        assert set(module.__all__) == set(operators), name
        assert all(getattr(module, operator).__doc__ for operator in operators)
    assert len(OPERATORS) == len(set(OPERATORS))


def test_every_name_that_mmcv_asks_for_is_there_or_told_of():
    mmcv = showing.mmcv_folder()
    if mmcv is None:
        pytest.skip('mmcv is not installed')
    asked = set()
    for file in (mmcv / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'load_ext':
                asked |= set(ast.literal_eval(node.args[1]))
    assert len(asked) >= 112
    assert asked - set(OPERATORS) - set(USERS) <= {'line_nms_forward'}  # of the fork, for lines of a road
    assert not set(OPERATORS) & set(USERS)


@pytest.mark.parametrize('name', ['ball_query_forward', 'an_operator_of_tomorrow'])
def test_a_missing_operator_raises_when_it_is_called(name):
    operator = getattr(load(), name)
    with pytest.raises(MissingOperatorError) as error:
        operator(1, 2, key=3)
    text = str(error.value)
    assert repr(name) in text
    assert 'mmdet 3.3.0' in text
    assert '"mmcv==2.1.0"' in text
    assert isinstance(error.value, NotImplementedError)
    assert ('mmdet3d' in text) == (name in USERS)


def test_the_finder_answers_to_one_name_and_stands_last():
    finder = ExtensionFinder()
    assert finder.find_spec('mmcv') is finder.find_spec('mmcv.ops') is finder.find_spec('_ext') is None
    register_finder()
    register_finder()
    assert sum(type(each).__name__ == 'ExtensionFinder' for each in sys.meta_path) == 1


# --------------------------------------------------------------------------------------------------------------------
# Beside an mmcv that others installed


@pytest.fixture
def mmcv(tmp_path, monkeypatch):
    """An mmcv without its compiled module."""
    folder = tmp_path / 'mmcv'
    (folder / 'ops').mkdir(parents=True)
    (folder / '__init__.py').write_text("__version__ = '2.1.0'\n")
    (folder / 'ops' / '__init__.py').write_text('import importlib\next = importlib.import_module("mmcv._ext")\n')
    monkeypatch.setattr(showing, 'mmcv_folder', lambda: folder)
    monkeypatch.setattr('mmext_backbones.mmcv_ops.installing.mmcv_folder', lambda: folder)
    return folder


NMS = """
import mmcv.ops, torch
boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 7.5], [20, 20, 30, 30]])
print(mmcv.ops.ext.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5, offset=0).tolist())
"""


def test_only_a_program_that_imports_the_package_finds_them(mmcv, python):
    """The import itself loads neither mmcv nor what its operators need."""
    pytest.importorskip('torchvision')
    assert "No module named 'mmcv._ext'" in python(NMS, mmcv.parent, check=False).stderr
    loaded = "import sys, mmext_backbones\nprint([n for n in ('mmcv', 'torchvision', 'mmdet') if n in sys.modules])\n"
    assert python(loaded + NMS, mmcv.parent).split('\n') == ['[]', '[0, 2]', '']


def test_installed_for_every_program_and_taken_back(mmcv, python, capsys):
    pytest.importorskip('torchvision')
    main(['--install'])
    main(['--install'])
    assert 'written' in capsys.readouterr().out
    again = "import sys, mmext_backbones\n[sys.modules.pop(n) for n in ('mmcv', 'mmcv.ops', 'mmcv._ext')]\n"
    assert python(NMS + again + NMS, mmcv.parent).split() == ['[0,', '2]'] * 2
    hidden = 'import sys\nsys.modules["mmext_backbones"] = None\n' + NMS
    assert 'mmext_backbones, which stood in for them, is gone' in python(hidden, mmcv.parent, check=False).stderr
    main(['--uninstall'])
    main(['--uninstall'])
    assert 'Nothing to remove' in capsys.readouterr().out
    assert [path.name for path in mmcv.iterdir() if path.name.startswith('_ext')] == []


def test_a_compiled_module_is_left_alone_and_found_first(mmcv, python):
    from mmext_backbones.utils.errors import UserError

    (mmcv / f'_ext{EXTENSION_SUFFIXES[0]}').write_bytes(b'no library')
    assert showing.compiled_extension() is not None
    with pytest.raises(UserError, match='is compiled'):
        main(['--install'])
    assert not (mmcv / '_ext.py').exists()
    # Python finds it before the finder, and it is none: as where it was built for another torch
    assert 'ImportError' in python('import mmext_backbones\n' + NMS, mmcv.parent, check=False).stderr


def test_a_module_of_somebody_else_stays(mmcv):
    from mmext_backbones.utils.errors import UserError

    (mmcv / '_ext.py').write_text('def nms(*args, **kwargs): ...\n')
    for option in ('--install', '--uninstall'):
        with pytest.raises(UserError, match='stays'):
            main([option])
    assert (mmcv / '_ext.py').read_text().startswith('def nms')


def test_a_folder_that_cannot_be_written(mmcv, monkeypatch):
    from mmext_backbones.utils.errors import UserError

    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(Path, 'write_text', refuse)
    with pytest.raises(UserError, match='cannot be written: Permission denied'):
        main(['--install'])


def test_no_mmcv(monkeypatch):
    from mmext_backbones.utils.errors import UserError

    monkeypatch.setattr('mmext_backbones.mmcv_ops.installing.mmcv_folder', lambda: None)
    with pytest.raises(UserError, match=r'mmcv-lite==2\.1\.0'):
        main(['--install'])


def test_the_list(capsys):
    main([])
    text = capsys.readouterr().out
    assert all(name in text for name in [*OPERATORS, *USERS])
    (row,) = [line for line in text.splitlines() if line.startswith('deform_conv_backward_input')]
    assert row.split() == ['deform_conv_backward_input', 'convolutions.py', '82', '0']


def test_one_line_in_a_log():
    pytest.importorskip('mmcv')
    log = logging.getLogger('a run')
    records = []
    log.addHandler(type('Kept', (logging.Handler,), {'emit': lambda self, record: records.append(record)})())
    log.setLevel(logging.INFO)
    showing.announce(log)
    showing.announce(log)
    (record,) = records
    assert record.getMessage() == showing.describe()
    assert record.getMessage().startswith("mmcv's operators: ")
