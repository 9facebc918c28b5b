"""Curves: what is read from the logs of a training, and what of it is drawn."""

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmext_backbones.utils.errors import UserError
from mmext_backbones.visualization.curves import draw_runs, read_run, smooth

ROOT = Path(__file__).parents[2]


def entry(step: int, **values: float) -> dict:
    return {'lr': 0.1 / step, 'loss': 10.0 / step, 'time': 0.1, 'iter': step, 'step': step, **values}


def log(folder: Path, date: str, entries: list[dict], end: str = '') -> Path:
    path = folder / date / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries) + end)
    return path


def steps(curve: list[tuple[int, float]]) -> list[int]:
    return [step for step, _ in curve]


def draw(*argv: object) -> int | None:
    main = runpy.run_path(str(ROOT / 'tools' / 'visualize.py'), run_name='visualize')['main']
    return main(['curves', *map(str, argv)])


def test_a_resumed_run_is_one_line(tmp_path):
    log(tmp_path, '20260101_000000', [*(entry(step) for step in (10, 20, 30)), {'mAP': 0.2, 'time': 9.0, 'step': 30}])
    log(tmp_path, '20260102_000000', [entry(30, loss=7.0), entry(40), {'mAP': 0.3, 'step': 40}])
    run = read_run(tmp_path)
    assert run.curves['loss'] == [(10, 1.0), (20, 0.5), (30, 7.0), (40, 0.25)]
    assert run.curves['mAP'] == [(40, 0.3)]  # that at 30 was of the part which was trained again
    assert run.metrics == {'mAP'}
    assert steps(run.curves['time']) == [10, 20, 30, 40]  # none of the validation
    assert run.notes == ['goes on in 20260102_000000 from iteration 30']


def test_a_second_training_in_the_folder_replaces_the_first(tmp_path):
    log(tmp_path, '20260101_000000', [entry(step) for step in (10, 20, 30)])
    log(tmp_path, '20260102_000000', [entry(10), entry(20)])
    log(tmp_path, '20260103_000000', [{'mAP': 0.1, 'step': 0}])  # a test is no training
    run = read_run(tmp_path)
    assert steps(run.curves['loss']) == [10, 20]
    assert run.notes == ['starts again from the beginning in 20260102_000000; what was logged before is left out']


def test_metrics_by_epoch_are_drawn_at_their_iteration(tmp_path):
    entries = [entry(50, epoch=1), {'mIoU': 30.0, 'step': 1}, entry(110, epoch=2), {'mIoU': 40.0, 'step': 2}]
    log(tmp_path, '20260101_000000', entries)
    assert read_run(tmp_path).curves['mIoU'] == [(50, 30.0), (110, 40.0)]


def test_a_loss_of_the_validation_is_told_from_that_of_the_training(tmp_path):
    log(tmp_path, '20260101_000000', [entry(10), {'loss': 5.0, 'step': 10}])
    run = read_run(tmp_path)
    assert (run.curves['loss'], run.curves['val/loss']) == ([(10, 1.0)], [(10, 5.0)])


def test_a_line_that_was_cut_short_is_left_out_and_told(tmp_path):
    path = log(tmp_path, '20260101_000000', [entry(10)], end='{"loss": 1')
    run = read_run(tmp_path)
    assert steps(run.curves['loss']) == [10]
    assert 'cut short' in run.notes[0]
    path.write_text('{"loss": 1\n' + json.dumps(entry(10)) + '\n')
    with pytest.raises(UserError, match='line 1: expected an object'):
        read_run(tmp_path)


def test_curves_json_alone_and_before_a_resume_from_elsewhere(tmp_path):
    saved = {'interval': 10, 'losses': {'loss': [[10, 3.0], [20, 2.0]]}, 'metrics': {'mAP': [[15, 0.1], [30, 0.4]]}}
    (tmp_path / 'curves.json').write_text(json.dumps(saved))
    assert read_run(tmp_path).curves == read_run(tmp_path / 'curves.json').curves
    assert read_run(tmp_path).curves['loss'] == [(10, 3.0), (20, 2.0)]
    log(tmp_path, '20260101_000000', [entry(30), {'mAP': 0.5, 'step': 30}])
    run = read_run(tmp_path)
    assert run.curves['loss'] == [(10, 3.0), (20, 2.0), (30, 1 / 3)]
    assert run.curves['mAP'] == [(15, 0.1), (30, 0.5)]
    assert run.notes == ['before iteration 30: from curves.json']


@pytest.mark.parametrize('make', [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text('')])
def test_what_is_no_training_says_what_is_expected(make, tmp_path):
    make(tmp_path / 'run')
    with pytest.raises(UserError, match=r'no such folder|Expected a work dir'):
        read_run(tmp_path / 'run')


def test_smoothing_is_a_weighted_mean():
    values = np.random.default_rng(0).standard_normal(20)
    smoothed = smooth(list(enumerate(values)), 0.7)
    for index in range(20):
        weights = 0.7 ** np.arange(index, -1, -1)
        assert smoothed[index] == pytest.approx((index, np.average(values[: index + 1], weights=weights)))
    assert np.isnan(smooth([(0, 1.0), (1, float('nan')), (2, 3.0)], 0.7)[1][1])
    assert smooth([(0, 1.0), (1, float('nan')), (2, 3.0)], 0.7)[2] == pytest.approx((2, 3.0))


def test_the_chart_has_a_line_for_each_run_and_the_raw_values_behind(tmp_path):
    for name, values in (('a', {}), ('b', {'extra_loss': 1.0})):
        log(tmp_path / name, '20260101_000000', [entry(step, **values) for step in (10, 20)] + [{'mAP': 1, 'step': 20}])
    runs = {name: read_run(tmp_path / name) for name in 'ab'}
    figure = draw_runs(runs, ['loss', 'lr', 'mAP', 'extra_loss'], 0.5)
    loss, lr, metric, extra = figure.axes
    assert [line.get_label() for line in loss.lines if not line.get_label().startswith('_')] == ['a', 'b']
    assert list(loss.lines[1].get_ydata()) == [1.0, 0.5]  # as logged
    assert list(loss.lines[0].get_ydata()) == pytest.approx([1.0, (0.5 * 1.0 + 0.5) / 1.5])
    assert [len(axes.lines) for axes in (loss, lr, metric, extra)] == [4, 2, 2, 2]
    assert {axes.get_xlim() for axes in figure.axes} == {loss.get_xlim()}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['a', 'b']


def test_from_the_command_line(tmp_path, capsys):
    for name, values in (('x/run', {}), ('y/run', {'extra': 1.0})):
        log(tmp_path / name, '20260101_000000', [entry(step, **values) for step in (10, 20)])
    out = tmp_path / 'new' / 'curves.png'
    draw(tmp_path / 'x/run', tmp_path / 'y/run', '--keys', 'lo*', 'extra', '--out', out)
    assert cv2.imread(str(out)).shape[1] > 600
    told = capsys.readouterr().out
    assert 'x/run: not logged: extra' in told
    assert 'y/run: not' not in told
    assert f'written      {out}' in told
    draw(tmp_path / 'x/run', '--out', out)
    assert f'replaced     {out}' in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]


def test_many_parts_of_the_loss_are_left_out_and_told(tmp_path, capsys):
    log(tmp_path, '20260101_000000', [entry(10, **{f'd{i}.loss_cls': 1.0 for i in range(12)})])
    draw(tmp_path, '--out', tmp_path / 'curves.png')
    assert '12 parts of the loss are left out' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--keys', 'los'], "no run has logged it. Did you mean 'loss'"),
        (['--smooth', '1'], 'expected 0 or more, and less than 1'),
        (['--out', 'curves.txt'], 'expected a picture'),
    ],
)
def test_mistakes_are_explained(options, message, tmp_path):
    log(tmp_path, '20260101_000000', [entry(10)])
    with pytest.raises(UserError) as error:
        draw(tmp_path, *options)
    assert message in str(error.value)


def test_the_same_run_twice_is_a_mistake(tmp_path):
    log(tmp_path, '20260101_000000', [entry(10)])
    with pytest.raises(UserError, match='named twice'):
        draw(tmp_path, tmp_path / '.')
