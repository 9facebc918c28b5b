"""The installed command and its verbs, configs by name, and what the tools' arguments have in common."""

import argparse
import sys
import warnings
from pathlib import Path

import pytest

import mmext_backbones
from mmext_backbones import __main__ as command
from mmext_backbones.config.files import load_config, own_configs
from mmext_backbones.config.writing import write_child
from mmext_backbones.utils.cli import check_threshold, command_line, square
from mmext_backbones.utils.errors import UserError
from mmext_backbones.utils.words import plural
from mmext_backbones.zoo import build_network

ROOT = Path(__file__).parents[2]


def test_every_tool_has_a_verb():
    tools = {path.name for path in (ROOT / 'tools').glob('*.py')}
    assert {target for target, _ in command.VERBS.values() if target.endswith('.py')} == tools
    for target, line in command.VERBS.values():
        assert target in tools or (ROOT / 'mmext_backbones' / target / '__main__.py').is_file()
        assert line


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h']])
def test_help_lists_the_verbs(argv, capsys):
    assert command.main(argv) == 0
    screen = capsys.readouterr().out
    for verb, (_, line) in command.VERBS.items():
        assert f'  {verb:<12} {line}\n' in screen


def test_version(capsys):
    assert command.main(['--version']) == 0
    assert capsys.readouterr().out == f'{mmext_backbones.__version__}\n'


@pytest.mark.parametrize(
    ('typed', 'meant'), [('trian', 'train'), ('finetune_coco', 'finetune'), ('check-dat', 'check-data')]
)
def test_a_verb_that_is_none(typed, meant, capsys):
    assert command.main([typed, 'x']) == 2
    assert f"there is no such verb. Did you mean '{meant}'?" in capsys.readouterr().err


def run(monkeypatch, *argv: str) -> int:
    """A verb in this process, which it would end."""
    monkeypatch.setattr(sys, 'argv', ['mmext', *argv])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code


def test_a_verb_is_its_tool(monkeypatch, capsys):
    assert run(monkeypatch, 'cost', 'swin_t', '--size', '64') == 0
    once = capsys.readouterr().out
    assert 'SwinTransformer on 1 x 3 x 64 x 64' in once
    assert run(monkeypatch, 'cost', 'swin_t', '--size', '64', '64') == 0
    assert capsys.readouterr().out == once
    assert command_line('tools/test.py', 'a b') == "mmext test 'a b'"
    assert command_line('tools/check_dataset.py') == 'mmext check-data'
    assert run(monkeypatch, 'cost', '--help') == 0
    assert capsys.readouterr().out.startswith('usage: mmext cost ')
    assert run(monkeypatch, 'cost', 'swin_q', '--size', '64') == 2
    assert "Did you mean 'swin_" in capsys.readouterr().err


def test_tools_of_a_checkout_are_called_so(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['tools/train.py'])
    assert command_line('tools/test.py') == 'python tools/test.py'


@pytest.mark.parametrize(
    ('argv', 'words', 'light'),
    [
        (['-m'], ['python', '-m', 'mmext_backbones.doctor'], True),
        (['-m', 'doctor'], ['python', '-m', 'mmext_backbones', 'doctor'], True),
        (['/usr/bin/mmext', 'doctor', '--quick'], ['python', '/usr/bin/mmext', 'doctor'], True),
        (['/usr/bin/mmext'], ['python', '/usr/bin/mmext'], True),
        (['/usr/bin/mmext', 'train', 'x'], ['python', '/usr/bin/mmext', 'train', 'x'], False),
        (['-m', 'train'], ['python', '-m', 'mmext_backbones', 'train'], False),
        (['-m', 'doctor'], ['python', '-m', 'pytest', 'doctor'], False),
        (['tools/train.py', 'doctor'], ['python', 'tools/train.py', 'doctor'], False),
        ([''], ['python'], False),
    ],
)
def test_the_doctor_needs_nothing_that_may_be_missing(argv, words, light, monkeypatch):
    monkeypatch.setattr(sys, 'argv', argv)
    monkeypatch.setattr(sys, 'orig_argv', words)
    assert mmext_backbones._looks_only() is light


# --------------------------------------------------------------------------------------------------------------------
# Configs by name


@pytest.mark.parametrize('name', ['swin_t_maskrcnn_1x', 'swin_t_maskrcnn_1x.py', 'configs/swin_t_maskrcnn_1x.py'])
def test_configs_of_the_package_by_name(name, tmp_path, monkeypatch):
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    cfg = load_config(name)
    assert cfg.model.type == 'MaskRCNN'
    assert Path(cfg.filename).stem == 'swin_t_maskrcnn_1x'
    (tmp_path / 'configs').mkdir()
    (tmp_path / name).write_text('model = dict(type="Mine")')
    if name.endswith('.py'):
        assert load_config(name).model.type == 'Mine'  # a file that is there is meant


def test_names_that_are_of_no_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 'swin_t_maskrcnn_1x' in own_configs()
    for name in ('swin_t_maskrcn_1x', 'swin_t_maskrcn_1x.py'):
        with pytest.raises(UserError, match=r"there is no such file\. Did you mean 'swin_t_maskrcnn_1x'"):
            load_config(name)
    with pytest.raises(UserError, match='neither a backbone nor a config'):
        build_network('swin_q')


def test_a_child_of_a_config_by_name(tmp_path, monkeypatch):
    """Its base is what was found, which is no file beside it."""
    pytest.importorskip('mmdet')
    monkeypatch.chdir(tmp_path)
    old, new = load_config('swin_t_maskrcnn_1x'), load_config('swin_t_maskrcnn_1x')
    new.model.backbone.drop_path_rate = 0.3
    write_child('swin_t_maskrcnn_1x', old, new, tmp_path / 'child.py', 'a child')
    assert "'mmext_backbones::swin_t_maskrcnn_1x.py'" in (tmp_path / 'child.py').read_text()
    assert load_config('child.py').model.backbone.drop_path_rate == 0.3


def test_a_network_of_a_config_by_name(tmp_path, monkeypatch):
    pytest.importorskip('mmpretrain')
    monkeypatch.chdir(tmp_path)
    assert type(build_network('swin_t_in1k')).__name__ == 'ImageClassifier'


def test_reading_a_config_warns_of_nothing():
    """setuptools says of each import of pkg_resources that it is old, and mmengine imports it again and again."""
    pytest.importorskip('mmdet')
    before = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        inside = list(warnings.filters)
        load_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
        assert warnings.filters == inside
    assert warnings.filters == before


# --------------------------------------------------------------------------------------------------------------------
# Words


@pytest.mark.parametrize(
    ('argv', 'expected'),
    [
        (['--size', '224'], ['--size', '224', '224']),
        (['--size', '224', 'swin_t'], ['--size', '224', '224', 'swin_t']),
        (['x', '--size', '8', '9', '-o', '1'], ['x', '--size', '8', '9', '-o', '1']),
        (['--size', '8', '--size', '9'], ['--size', '8', '8', '--size', '9', '9']),
        (['--size'], ['--size']),
        (['--size', 'x'], ['--size', 'x']),
        (['x'], ['x']),
    ],
)
def test_one_number_is_a_square(argv, expected):
    assert square(argv) == expected


def test_numbers_in_sentences():
    assert [plural(n, 'image') for n in (0, 1, 2)] == ['0 images', '1 image', '2 images']
    assert [plural(n, 'class', 'classes') for n in (1, 5)] == ['1 class', '5 classes']


@pytest.mark.parametrize('wrong', [-0.1, 1.1, float('nan')])
def test_a_threshold_is_a_score(wrong):
    with pytest.raises(UserError, match=r'--threshold .*: expected a score from 0 to 1'):
        check_threshold(wrong)
    check_threshold(0.0)


def test_one_name_for_the_threshold():
    """With the old one of `visualize`."""
    from mmext_backbones.visualization import predictions

    parser = argparse.ArgumentParser()
    predictions.add_arguments(parser)
    for option in ('--threshold', '--score-thr'):
        assert parser.parse_args(['config', 'weights', option, '0.2']).threshold == 0.2
