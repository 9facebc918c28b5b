"""A tracker that breaks ends no training."""

import errno

import pytest

from mmext_backbones.engine import tracking
from mmext_backbones.utils import attempts
from mmext_backbones.utils.errors import UserError


def test_what_a_tracker_fails_at_is_told_once(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(attempts, 'warn', lambda text, *args: told.append(text))
    folder = tmp_path / 'work' / 'date' / 'vis_data'
    folder.mkdir(parents=True)

    class Broken(tracking.TensorBoardBackend):
        error = ImportError('no protobuf')

        def _init_env(self) -> None:
            raise self.error

    broken = Broken(str(folder))
    for step in range(3):
        broken.add_scalar('loss', 1.0, step)
    broken.close()
    assert [line for line in told if 'left out' in line] == [
        'what tensorboard shows: left out, and the run goes on (ImportError: no protobuf).'
    ]
    for error in (UserError('--track'), OSError(errno.ENOSPC, 'full')):  # a start that fails, and what others tell
        Broken.error = error
        with pytest.raises(type(error)):
            Broken(str(folder)).add_scalar('loss', 1.0, 0)


@pytest.mark.parametrize('content', ['', '[' * 10**5, '[]', '{"tensorboard": 5}'], ids=range(4))
def test_odd_notes_of_runs(content, tmp_path):
    folder = tmp_path / 'work' / 'date' / 'vis_data'
    folder.mkdir(parents=True)
    (tmp_path / 'work' / 'tracking.json').write_text(content)
    assert tracking.TensorBoardBackend(str(folder), resume_from='x.pth')._last_run() is None
