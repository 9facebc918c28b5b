"""What trackers write of a training, of one that is resumed, and of one in two processes. Run by tests/test_forking.py.

Each training is a process of its own: MLflow and Weights & Biases keep one run for a process.
"""

import importlib
import json
import struct
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmext_backbones.config.editing import ConfigEditor
from mmext_backbones.engine.config_edits import use_trackers
from mmext_backbones.utils.errors import UserError

from .toy import At, fork, forked, free_port, make_run, wait

ITERATIONS = 21


def import_once(tracker: str) -> None:
    """In the process that the trainings are forked from."""
    importlib.import_module({'tensorboard': 'torch.utils.tensorboard'}.get(tracker, tracker))


def train(folder: Path, tracker: str, resume: str | None = None, stop: int | None = None) -> None:
    """A training of 21 iterations with a checkpoint every five, in this process; cut short after an iteration."""

    def end() -> None:
        raise KeyboardInterrupt

    cfg = Config({'resume': resume is not None, 'load_from': resume})
    use_trackers(ConfigEditor(cfg), [tracker])
    runner = make_run(
        folder, 'iter', resume=resume, hooks=(At(stop, end),) if stop else (), visualizer=cfg.visualizer.to_dict(),
        log_processor={'by_epoch': False}, default_hooks={'logger': {'log_metric_by_epoch': False}},
    )  # fmt: skip
    try:
        runner.train()
    except KeyboardInterrupt:
        runner.visualizer.close()


def whole_and_resumed(folder: Path, tracker: str) -> None:
    """Stopped after iteration 18, and resumed from the checkpoint at 15."""
    import_once(tracker)
    assert forked(lambda: train(folder, tracker, stop=18)) == 0
    before = json.loads((folder / 'tracking.json').read_text())
    assert forked(lambda: train(folder, tracker, resume=str(folder / 'iter_15.pth'))) == 0
    assert json.loads((folder / 'tracking.json').read_text()) == before  # the same run


def logged(folder: Path, key: str) -> list[tuple[int, float]]:
    """What mmengine's own log says, of the training that was stopped up to the checkpoint, then of the resumed one."""
    points = {}
    for part in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in part.read_text().splitlines():
            entry = json.loads(line)
            if key in entry:
                points[entry['step']] = entry[key]
    return sorted(points.items())


def same(points: list[tuple[int, float]], expected: list[tuple[int, float]]) -> bool:
    """Event files hold float32."""
    steps = [step for step, _ in points] == [step for step, _ in expected]
    return steps and [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole_and_resumed(tmp_path, 'tensorboard')
    (folder,) = {path.parent for path in tmp_path.rglob('events.out.tfevents.*')}
    assert len(list(folder.glob('events.out.tfevents.*'))) == 2
    events = EventAccumulator(str(folder)).Reload()
    assert {'loss', 'lr', 'accuracy'} <= set(events.Tags()['scalars'])
    for key in ('loss', 'lr'):
        points = [(event.step, event.value) for event in events.Scalars(key)]
        assert [step for step, _ in points] == list(range(1, ITERATIONS + 1))  # 16 to 18 of the first start are hidden
        assert same(points, logged(tmp_path, key))
    assert [event.step for event in events.Scalars('accuracy')] == [7, 14, 21]


def test_a_new_training_in_the_folder_is_a_new_run(tmp_path):
    (tmp_path / 'tracking.json').write_text('{"tensorboard": "old/vis_data"}')
    assert forked(lambda: train(tmp_path, 'tensorboard', stop=2)) == 0
    run = json.loads((tmp_path / 'tracking.json').read_text())['tensorboard']
    assert run != 'old/vis_data'
    assert list((tmp_path / run).glob('events.out.tfevents.*'))
    assert not (tmp_path / 'old').exists()


@pytest.mark.slow
def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file://{tmp_path / "store"}')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')  # MLflow's database needs packages of the whole of it
    folder = tmp_path / 'work'
    whole_and_resumed(folder, 'mlflow')

    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name('work')
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((folder / 'tracking.json').read_text())['mlflow']
    assert run.info.status == 'FINISHED'
    assert run.data.params['optim_wrapper.optimizer.lr'] == '0.01'
    assert run.data.params['load_from'] == 'None'  # of the first start
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, 'accuracy')] == [7, 14, 21]
    # MLflow takes nothing back: what was trained twice is there twice
    points = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, 'loss')}
    assert sorted(points.items()) == logged(folder, 'loss')
    assert not list(tmp_path.rglob('events.out.tfevents.*'))


def test_mlflow_without_a_store_says_what_helps(tmp_path, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file://{tmp_path / "store"}')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'false')

    def refused() -> None:
        with pytest.raises(UserError, match=r'(?s)no run can be started.*pip install mlflow.*MLFLOW_ALLOW_FILE_STORE'):
            train(tmp_path / 'work', 'mlflow')

    assert forked(refused) == 0


@pytest.mark.slow
def test_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    whole_and_resumed(tmp_path, 'wandb')
    run = json.loads((tmp_path / 'tracking.json').read_text())['wandb']
    first, second = sorted(tmp_path.glob(f'*/vis_data/wandb/offline-run-*-{run}'))
    records = [read_wandb(next(path.glob('*.wandb'))) for path in (first, second)]
    points = {int(row['iter']): row['loss'] for rows in records for row in rows if 'loss' in row}
    assert sorted(points.items()) == logged(tmp_path, 'loss')
    assert [row['accuracy'] for rows in records for row in rows if 'accuracy' in row] == [
        value for _, value in logged(tmp_path, 'accuracy')
    ]
    assert not [path for path in tmp_path.rglob('*.py') if 'code' in path.parts]  # none of the current folder


def read_wandb(path: Path) -> list[dict]:
    """The rows of its history that a run wrote: protocol buffers in the form of a LevelDB log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, content, rows = path.read_bytes(), 7, b'', []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no header fits in the rest of a block
            place += 32768 - place % 32768
        _, length, kind = struct.unpack_from('<IHB', data, place)  # whole, first, middle or last part of a record
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record, content = Record.FromString(content), b''
            items = record.history.item
            if items:
                rows.append({item.key or '.'.join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


@pytest.mark.parametrize(
    'tracker', ['tensorboard', *(pytest.param(tracker, marks=pytest.mark.slow) for tracker in ('mlflow', 'wandb'))]
)
def test_only_the_first_process_writes(tracker, tmp_path, monkeypatch):
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    import_once(tracker)
    port = free_port()

    def process(rank: int) -> None:
        monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file://{tmp_path / f"store{rank}"}')
        torch.distributed.init_process_group(
            'gloo', f'tcp://127.0.0.1:{port}', timedelta(seconds=60), world_size=2, rank=rank
        )
        train(tmp_path / f'rank{rank}', tracker)  # a folder each, so that what a process writes is told apart

    assert wait([fork(lambda rank=rank: process(rank)) for rank in (0, 1)]) == [0, 0]
    assert (tmp_path / 'rank0' / 'tracking.json').is_file()
    names = ('tracking.json', 'events.out.tfevents.*', 'wandb', 'scalars.json')
    assert not [path for name in names for path in (tmp_path / 'rank1').rglob(name)]
    assert not (tmp_path / 'store1').exists()
