"""Checkpoints as mmengine writes them load in torch's safe mode, and nothing else does."""

import io
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

import mmext_backbones  # noqa: F401  (allows them)

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'), reason='safe mode is not the default'
)


def buffer() -> HistoryBuffer:
    history = HistoryBuffer()
    for value in (1.0, 2.5):
        history.update(value)
    return history


def saved(content: object) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def test_history_and_numpy_values_load_safely():
    content = {
        'state_dict': {'w': torch.ones(2)},
        'message_hub': {'log_scalars': {'train/loss': buffer()}},
        'meta': {'seed': np.int64(3), 'lr': np.float32(0.5), 'list': np.arange(3)},
    }
    loaded = torch.load(saved(content), weights_only=True)
    assert loaded['message_hub']['log_scalars']['train/loss'].data[0].tolist() == [1.0, 2.5]
    assert loaded['meta']['seed'] == 3
    assert loaded['meta']['list'].tolist() == [0, 1, 2]


@pytest.mark.parametrize('spelling', ['numpy.core.multiarray', 'numpy._core.multiarray'])
def test_both_spellings_of_numpy(spelling):
    """A legacy file, whose pickle is plain enough to be respelt."""
    file = io.BytesIO()
    torch.save({'x': np.arange(3.0), 'y': np.float64(2)}, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    own = np.arange(1).__reduce__()[0].__module__
    assert f'c{own}\n'.encode() in data
    data = data.replace(f'c{own}\n'.encode(), f'c{spelling}\n'.encode())
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    assert loaded['x'].tolist() == [0.0, 1.0, 2.0]
    assert loaded['y'] == 2


class Reach:
    """Pickles as a call of getattr with other arguments than a HistoryBuffer has."""

    def __init__(self, *args: object) -> None:
        self.args = args

    def __reduce__(self) -> tuple:
        return getattr, self.args


@pytest.mark.parametrize('args', [(HistoryBuffer, '__init__'), (HistoryBuffer, 'update'), (np.ndarray, 'tofile')])
def test_getattr_reaches_nothing_else(args):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved({'x': Reach(*args)}), weights_only=True)


def test_other_objects_stay_refused():
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved({'x': io.BytesIO(b'')}), weights_only=True)
