"""Which trackers a training gets, before it starts. What they write is in forking_tracking.py."""

import importlib.util

import pytest
from mmengine.config import Config
from mmengine.visualization import TensorboardVisBackend

from mmext_backbones.engine import config_edits
from mmext_backbones.engine.config_edits import use_trackers
from mmext_backbones.registry import VISBACKENDS
from mmext_backbones.utils.errors import UserError
from tests.test_engine.edits import edited

LOCAL = {'type': 'LocalVisBackend'}
TENSORBOARD = {'type': 'mmext_backbones.TensorBoardBackend', 'name': 'TensorboardVisBackend'}


def config(backends: object = None, **entries: object) -> Config:
    visualizer = {
        'type': 'DetLocalVisualizer',
        'vis_backends': backends or [LOCAL],
        'name': 'visualizer',
        'line_width': 3,
    }
    return Config({'visualizer': visualizer, **entries})


def without(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(config_edits.importlib.util, 'find_spec', lambda name: None if name == package else find(name))


def test_tensorboard_is_the_default_and_nothing_is_lost():
    cfg = config([LOCAL, {'type': 'AimVisBackend'}])
    (change,) = edited(use_trackers, cfg)
    assert cfg.visualizer.vis_backends == [LOCAL, {'type': 'AimVisBackend'}, TENSORBOARD]
    assert cfg.visualizer.line_width == 3
    assert change.path == 'visualizer.vis_backends'
    assert change.before == [LOCAL, {'type': 'AimVisBackend'}]
    assert issubclass(VISBACKENDS.get(TENSORBOARD['type']), TensorboardVisBackend)


def test_one_backend_that_is_no_list():
    cfg = config(LOCAL)
    edited(use_trackers, cfg)
    assert cfg.visualizer.vis_backends == [LOCAL, TENSORBOARD]


@pytest.mark.parametrize('visualizer', [None, 'left out'])
def test_a_config_without_a_visualizer_keeps_the_local_log(visualizer):
    cfg = Config({'visualizer': None} if visualizer is None else {})
    edited(use_trackers, cfg)
    assert cfg.visualizer == {'type': 'Visualizer', 'vis_backends': [LOCAL, TENSORBOARD]}


@pytest.mark.parametrize('own', ['TensorboardVisBackend', 'mmengine.TensorboardVisBackend'])
def test_what_the_config_has_is_not_added_again(own):
    cfg = config([LOCAL, {'type': own, 'save_dir': 'mine'}])
    assert edited(use_trackers, cfg) == edited(use_trackers, cfg, ['tensorboard']) == []
    assert cfg.visualizer.vis_backends == [LOCAL, {'type': own, 'save_dir': 'mine'}]


def test_several_and_none():
    cfg = config()
    assert edited(use_trackers, cfg, ['none']) == []
    edited(use_trackers, cfg, ['wandb', 'mlflow', 'wandb'])
    assert [backend.get('name') for backend in cfg.visualizer.vis_backends] == [
        None, 'WandbVisBackend', 'MLflowVisBackend',
    ]  # fmt: skip
    with pytest.raises(UserError, match='none goes with no other'):
        edited(use_trackers, config(), ['none', 'wandb'])


def test_a_resumed_training_tells_its_checkpoint():
    cfg = config(resume=True, load_from='run/iter_20.pth')
    edited(use_trackers, cfg)
    assert cfg.visualizer.vis_backends[1] == TENSORBOARD | {'resume_from': 'run/iter_20.pth'}


def test_without_tensorboard_a_training_goes_on(monkeypatch, capsys):
    without(monkeypatch, 'tensorboard')
    cfg = config()
    assert edited(use_trackers, cfg) == []
    assert cfg.visualizer.vis_backends == [LOCAL]
    assert 'pip install tensorboard' in capsys.readouterr().out


@pytest.mark.parametrize('tracker', ['tensorboard', 'mlflow', 'wandb'])
def test_what_is_asked_for_and_missing_is_an_error(tracker, monkeypatch):
    without(monkeypatch, tracker)
    with pytest.raises(UserError, match=f'pip install {tracker}$'):
        edited(use_trackers, config(), [tracker])


@pytest.mark.parametrize('resume', [True, False])
def test_the_config_that_an_earlier_training_left_gets_no_second_one(resume):
    earlier = TENSORBOARD | {'resume_from': 'first/iter_2.pth'}
    cfg = config([LOCAL, earlier], resume=resume, load_from='run/iter_20.pth')
    edited(use_trackers, cfg, ['tensorboard'])
    expected = TENSORBOARD | ({'resume_from': 'run/iter_20.pth'} if resume else {})
    assert cfg.visualizer.vis_backends == [LOCAL, expected]


def test_one_that_has_the_name_already_stands():
    other = {'type': 'somebody.TheirBackend', 'name': 'TensorboardVisBackend'}
    cfg = config([LOCAL, other])
    assert edited(use_trackers, cfg) == []
    assert cfg.visualizer.vis_backends == [LOCAL, other]


def test_a_run_is_noted_once_it_shows_a_number(tmp_path):
    """A training that is refused before takes the place of no other."""
    pytest.importorskip('tensorboard')
    note = tmp_path / 'tracking.json'
    note.write_text('{"tensorboard": "1/vis_data"}')
    backend = VISBACKENDS.build({'type': TENSORBOARD['type'], 'save_dir': str(tmp_path / '2' / 'vis_data')})
    backend.add_config(Config({'a': 1}))
    assert note.read_text() == '{"tensorboard": "1/vis_data"}'
    backend.add_scalars({'loss': 1.0}, step=1)
    assert note.read_text() == '{"tensorboard": "2/vis_data"}'
    backend.close()
