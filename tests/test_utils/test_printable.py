"""What files say reaches a screen as text: a terminal obeys none of it."""

import logging
import sys

import numpy as np
import pytest

from mmext_backbones.app.captions import Found, failure_text, found_text, note_text
from mmext_backbones.datasets.bad_data.report import report_lines
from mmext_backbones.engine.evaluation.per_class import per_class_lines
from mmext_backbones.inference import Prediction
from mmext_backbones.utils.cli import run_cli
from mmext_backbones.utils.console import say, shorten_console
from mmext_backbones.utils.errors import UserError, few
from mmext_backbones.utils.printable import one_line, printable
from mmext_backbones.weights.fitting import Report

EVIL = 'cat\x1b[2J\x1b]0;title\x07\r\x08\x9b1m\u202edog\u2066\u200f\u2028\udce4\x7f'
OBEYED = set(EVIL) - set('cat[2J]0;title1mdog')


def assert_plain(text: str, lines: int = 1) -> None:
    assert not OBEYED & set(text)
    assert len(text.splitlines()) == lines
    assert '\\x1b[2J' in text
    assert '\\u202edog' in text
    assert '\\udce4' in text


def test_what_a_screen_obeys_is_spelt_out():
    assert_plain(printable(EVIL))
    assert printable('a\tb\nc') == 'a\tb\nc'
    assert one_line('a\tb\nc') == 'a\\tb\\nc'
    for letter in map(chr, [*range(0x20), *range(0x7F, 0xA0)]):
        assert one_line(letter).isascii()
        assert one_line(letter).isprintable()


@pytest.mark.parametrize('name', ['naïve', '猫', 'گربه\u200cها', '\u3000', '👩\u200d🚀', 'a\xa0b', '\\x1b'])
def test_names_of_any_language_stay(name):
    assert one_line(name) == name


def test_an_error(capsys):
    def main(argv):
        raise UserError(f'{EVIL}: wrong\nDo this.')

    assert run_cli(main, []) == 2
    assert_plain(capsys.readouterr().err.strip(), lines=2)


def test_a_line_that_is_said(capsys):
    say(EVIL)
    assert_plain(capsys.readouterr().out.strip())


def test_a_screen_that_lacks_a_character_ends_no_run(tmp_path, monkeypatch):
    with (tmp_path / 'out').open('w', encoding='ascii') as screen:
        monkeypatch.setattr(sys, 'stdout', screen)
        assert run_cli(lambda argv: print('猫 \udce4'), []) == 0
    assert (tmp_path / 'out').read_text() == '\\u732b \\udce4\n'


def test_a_log_record(tmp_path):
    logger = logging.Logger('printable')
    stream = (tmp_path / 'screen').open('w+')
    logger.addHandler(logging.StreamHandler(stream))
    shorten_console(logger, testing=False).warning('Images: %s', EVIL)
    stream.seek(0)
    assert_plain(stream.read().strip())


def test_names_in_tables_and_messages_are_on_one_line():
    name = f'{EVIL}\nnot a line'
    assert_plain(few([name]))
    part = {'samples': 1, 'data': EVIL, 'faults': {}}
    part['faults'] = {'missing': {'level': 'error', 'remedy': 'x', 'found': [{'path': name, 'detail': EVIL}]}}
    lines = report_lines({'train': part})
    assert len(lines) == 4
    assert_plain(lines[1])
    assert_plain(lines[3])
    assert not OBEYED & set(''.join(per_class_lines({'bbox': {name: {'AP': 0.5}}})))
    report = Report(source=name, layout='own', loaded=['a'], unexpected=[name])
    assert_plain(str(report), lines=4)


@pytest.fixture
def prediction() -> Prediction:
    return Prediction(
        'detection', (8, 8), (f'{EVIL}\n<b>',), boxes=np.float32([[1, 1, 5, 5]]), scores=np.float32([0.9]),
        labels=np.array([0]), seconds=1.0,
    )  # fmt: skip


def test_predictions(prediction):
    assert_plain(prediction.summary())
    assert prediction.to_dict()['objects'][0]['class'] == f'{EVIL}\n<b>'  # data stays as it is


def test_the_page(prediction):
    text = found_text(Found(EVIL, prediction, None, False), 0.0)
    assert_plain(text)
    assert "<b>'" not in text
    assert '\\n&lt;b&gt;' in text
    for each in (failure_text(EVIL), note_text(EVIL)):
        assert_plain(each)
