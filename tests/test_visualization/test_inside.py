"""The four commands that look inside a network, on a bare checkout."""

import runpy
from pathlib import Path

import cv2
import pytest

from mmext_backbones.utils.cli import run_cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def main():
    return runpy.run_path(str(ROOT / 'tools' / 'visualize.py'))['main']


COMMANDS = {
    'features': ['features', 'swin_t', '--channels', '1'],
    'attention': ['attention', 'swin_t', '--stage', '1', '--block', '1'],
    'attention of a grid': ['attention', 'maxvit_t', '--stage', '2', '--block', '1'],
    'filters': ['filters', 'elsa_swin_t', '--heads', '0', '2', '--point', '3', '60', '--point', '30', '5'],
    'receptive-field': ['receptive-field', 'sequencer_s', 'swin_t', '--num', '1'],
    'mixers': ['receptive-field', 'sequencer_s', '--mixers', '--noise', '--num', '1', '--stage', '1'],
}


SLOW = ('attention of a grid', 'receptive-field')


@pytest.mark.parametrize(
    'argv',
    [pytest.param(argv, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, argv in COMMANDS.items()],
)
def test_every_command_runs_without_weights_and_data(argv, main, tmp_path, capsys):
    out = tmp_path / 'out.png'
    assert run_cli(main, [*argv, '--size', '64', '--out', str(out)]) == 0
    picture = cv2.imread(str(out))
    assert picture.std() > 5
    assert min(picture.shape[:2]) > 200
    assert 'written' in capsys.readouterr().out


MISTAKES = {
    'two pictures': (['features', 'swin_t', 'a.png', 'b.jpg'], "'a.png' and 'b.jpg' are both taken for pictures"),
    'no picture': (['features', 'swin_t', 'none.png'], "picture 'none.png': there is no such file"),
    'no weights': (['features', 'swin_t', 'none.pth'], "weights 'none.pth': none.pth can not be found"),
    'no network': (['attention', 'swin_x'], "'swin_x' is neither a backbone nor a config"),
    'no suffix': (['filters', 'elsa_swin_t', '--out', 'picture'], '--out picture: expected a picture'),
    'both': (['receptive-field', '--noise', '--images', 'a.png'], '--images and --noise: expected one of them'),
    'none': (['receptive-field', '--num', '0'], '--num 0 --size 224: expected at least 1'),
}


@pytest.mark.parametrize(('argv', 'message'), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_end_in_one_message(argv, message, main, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_cli(main, argv) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
